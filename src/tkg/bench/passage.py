"""The text whose perplexity `tkg bench --end-to-end` takes; written for this project."""

from __future__ import annotations

TEXT = """\
The lighthouse at the end of the harbour had been empty for eleven years when the town decided to
light it again. Nobody needed the light. Ships found their way with satellites, and the few fishing
boats that still went out knew every rock by name. But in winter, when the sun went down at four in
the afternoon, people said that the dark had become too large.

An old woman called Marta, who had once kept the records of the port, was asked to see whether the
machine could be repaired. She climbed the hundred and twelve steps with a lamp, a notebook and a
sandwich, and found the lens under a sheet, as clean as on the day on which it had been covered.
The motor that turned it was another matter. Its oil had dried to a brown glue, and a family of
gulls had built a nest between the gears.

She did not disturb the gulls. Instead she wrote down what would be needed: new bearings, two
litres of oil, a belt, and patience until the end of May, when the young birds would be able to
fly. The mayor thought that this was too long. The children of the town, who had heard of the nest
by then, thought that it was far too short, and they sat on the wall below the tower every day after
school to count the birds.

There were three of them. The first flew on the twentieth of May, the second on the day after. The
third stayed where it was for another week, walked up and down the edge of the gallery, looked at
the water, and went back inside. On the last evening of the month, with half of the town watching,
it fell rather than flew, opened its wings a few metres above the stones, and was gone over the sea.

The light was switched on at nine. It turned slowly, once every ten seconds, as it had always done,
and each time that it passed over the roofs people stopped talking for a moment. Marta wrote the
date and the hour into the old book of the port. Under it she wrote: all clear.
"""
