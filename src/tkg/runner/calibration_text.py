"""The text whose activations calibrate FP8 weights; written for this project.

Many kinds of text in few words: what matters is which features are large together, and that
depends on what is read. It shares nothing with `tkg.bench.passage`, whose perplexity judges the
result.
"""

from __future__ import annotations

TEXT = '''\
# How bread rises

Yeast is a fungus of a single cell. In warm, wet dough it eats the sugars that enzymes have split
off the starch, and gives off carbon dioxide and a little alcohol. The gas cannot escape, because
two proteins of wheat, gliadin and glutenin, have joined into an elastic net called gluten.
Kneading stretches this net and puts it in order. In the oven the bubbles grow until, at about 60
°C, the starch sets and holds their shape; the alcohol evaporates, and the crust turns brown above
140 °C.

1. Mix 500 g of flour, 350 ml of water, 10 g of salt and 5 g of dry yeast.
2. Knead for ten minutes, then cover the bowl and wait for an hour and a half.
3. Shape a loaf, let it rest for 40 minutes, and bake it at 230 °C until it sounds hollow.

User: Why does my loaf stay flat?
Assistant: There are three common reasons. First, the yeast may be too old: stir a spoonful into
warm water with some sugar, and if there is no foam after ten minutes, buy a new packet. Second,
the dough may have been too cold. Third, if you waited too long, the net tears and the gas gets
out. Try a shorter second rest, and let me know whether that helps!

def moving_average(values: list[float], width: int) -> list[float]:
    """Means of `width` neighbours; shorter than `values` by `width - 1`."""
    if width < 1 or width > len(values):
        raise ValueError(f"width must be between 1 and {len(values)}, got {width}")
    total = sum(values[:width])
    means = [total / width]
    for i in range(width, len(values)):
        total += values[i] - values[i - width]
        means.append(total / width)
    return means

assert moving_average([1.0, 2.0, 3.0, 4.0], 2) == [1.5, 2.5, 3.5]

"You are late again," said the clockmaker without looking up.

"The tram stopped on the bridge," Ilya answered. He hung his coat behind the door and sat down at
the smaller of the two benches, where a travelling clock lay in pieces on a white cloth. "It was
not my fault this time. A horse had lain down between the rails and would not be moved, and nobody
dared to ring the bell, because the driver of the cart was asleep as well."

His uncle laughed so hard that he had to take the glass out of his eye. For the rest of the morning
neither of them spoke. Rain ran down the window; the forty clocks on the wall disagreed politely
about the time, and a customer who came in to ask for a strap left with a kitten that had been
living in the drawer of receipts. Only when the noon gun was fired did the boy dare to say what he
had come to say. He had been offered a place on a ship. He would be gone for two years, perhaps
three.

LISBON, 14 March - The government announced on Tuesday that it would spend €2.3 billion on railways
over the next five years, the largest sum since 1998. Critics said the plan came too late. "We have
been promised a fast line to the north three times," said Ana Ferreira, who leads the passengers'
association. According to the ministry, work on the first 71 kilometres could begin in October, if
parliament agrees; shares of two building companies rose by more than 4%.

The Danube is the second-longest river in Europe, after the Volga. It rises in the Black Forest in
Germany and flows for 2,850 km to the south-east, through or along ten countries and four capitals
(Vienna, Bratislava, Budapest and Belgrade), before it reaches the Black Sea in Romania. Under the
Roman Empire it was for centuries a frontier. Today it is an important waterway, a source of
drinking water for about twenty million people, and the home of sturgeons, pelicans and beavers.

Problem. A tank holds 120 litres. One pipe fills it in 6 hours, another in 4 hours. How long do
both need together?
Solution. In an hour the first pipe brings 120 / 6 = 20 litres and the second 120 / 4 = 30 litres,
so together 50 litres an hour. They need 120 / 50 = 2.4 hours, which is 2 hours and 24 minutes.
More generally, if x and y are the two times, then t = xy / (x + y). Let f(x) = x^2 - 3x + 2; since
f(1) = f(2) = 0, the roots are 1 and 2, and the derivative f'(x) = 2x - 3 vanishes at x = 3/2.

Dear Professor Okafor,

thank you very much for your comments on my draft. I agree with nearly all of them, in particular
with what you wrote about the second chapter: the sample is small, and the conclusion must be put
more carefully. I would rather keep the table on page 17, however, since two other sections refer
to it. Could we talk about this next week? I am free on Monday and on Thursday after 3 p.m.

With best wishes,
Helen

| country | capital | people, millions | area, km² |
|---------|---------|-----------------:|----------:|
| Norway | Oslo | 5.5 | 385,207 |
| Chile | Santiago | 19.6 | 756,102 |
| Kenya | Nairobi | 55.1 | 580,367 |

$ git status
On branch main
Changes not staged for commit:
  modified:   src/parser.c
$ make && ./parser --input notes.txt > out.json
parser.c:42:10: error: expected ';' before 'return'

{"id": 7, "name": "Widget", "tags": ["small", "red"],
 "price": 12.50, "in_stock": true, "parent": null}

SELECT c.name, COUNT(*) AS orders FROM customers c JOIN orders o ON o.customer_id = c.id WHERE
o.placed_at >= '2023-01-01' GROUP BY c.name HAVING COUNT(*) > 3 ORDER BY orders DESC LIMIT 10;

for (int i = 0; i < n; i++) {
    if (a[i] > best) { best = a[i]; where = i; }  /* the first of equal values wins */
}

Article 5. (1) The tenant shall pay the rent in advance, not later than the third working day of
each month. (2) If the tenant is in arrears with two consecutive payments, the landlord may, after
written notice, terminate this agreement. (3) Nothing in this article limits the rights of either
party under applicable law.

A heart attack happens when the flow of blood to a part of the heart muscle is blocked, usually by
a clot in a coronary artery that cholesterol has narrowed. Typical signs are pressure or pain in
the chest that lasts longer than a few minutes, shortness of breath, cold sweat and nausea; in
women and in people with diabetes they can be less clear. Call an ambulance at once. Every minute
counts, because muscle without oxygen begins to die after about half an hour.

What makes an argument valid? Not that its conclusion is true, nor that its premises are, but only
that the premises could not be true while the conclusion was false. "All fish can fly; a trout is a
fish; therefore a trout can fly" is valid, though nobody would believe it. Philosophers call an
argument sound if it is valid and, in addition, starts from the truth. Most quarrels, Hume might
have said, are about the second question while both sides pretend that they are about the first.

The snow has come down to the orchard wall,
And nothing is left of the path at all;
But somebody walked from the gate to the tree,
And somebody's footprints are waiting for me.

El tren sale a las ocho y media de la mañana. La pluie a cessé, mais le vent souffle encore. Der
Schlüssel liegt unter der Matte, wie immer. 今日はとても寒いです。 Сегодня хорошая погода.

Review: ★★★★☆ I bought these headphones for my commute and I've been using them for six weeks now.
The sound is great for the price, they're light, and the battery easily lasts two days. What I
don't like: the app wants an account (why?!), and the case won't close properly anymore. Still, I'd
buy them again.

In 1854 a physician named John Snow marked on a map of London each house in which someone had died
of cholera. The marks crowded around one public pump. He had its handle taken off, and although the
epidemic was already fading, the map persuaded more people than any theory could have done. What he
did not know was the cause: the bacterium was described in the same year by Filippo Pacini in
Florence, and forgotten until Robert Koch found it again thirty years later.
'''
