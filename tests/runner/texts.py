"""Texts that tokenizers stumble over, and many random ones."""

from __future__ import annotations

import numpy as np

PLAIN = [
    "",
    " ",
    "a",
    " a",
    "The capital of France is",
    "Hello, world! It's 2018-01-22 12:12:53.",
    "  two  spaces   and\ttabs\t\tand\n\nlines\r\n \n  end  ",
    "don't I'LL they've we're I'M it'S you'd",
    "1234567890 3.14159 1,000,000 x2 2x v1.2.3 ½ ² ٣",
    "naïve café Ångström Straße İstanbul ǅ ŉ",
    "e\u0301 and \u00e9 differ until they are composed",
    "Привет, мир! 你好，世界。こんにちは 안녕하세요 שלום مرحبا नमस्ते",
    "👩\u200d👩\u200d👧\u200d👦 🇫🇷 ✨ 😀😀",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # ok\n",
    "https://example.org/a?b=c&d=%20#e CamelCase snake_case SCREAMING_CASE",
    "\u00a0nbsp\u2003em\u3000wide\u200bzero\ufeffbom",
    "...!!!???---___***(((",
    "\x00\x01\x7f control",
]
ALPHABETS = ["abc def", "aA1 .'", "é½ñü ", "你好 a", "😀👩\u200d ", " \n\t\r", "x0123456789 "]


def many(count: int, seed: int = 0) -> list[str]:
    """`PLAIN`, and `count` random texts over small alphabets."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        letters = list(ALPHABETS[i % len(ALPHABETS)] + ("the cat " if i % 3 else ""))
        made.append("".join(rng.choice(letters, rng.integers(1, 40))))
    return PLAIN + made
