"""Short texts of many kinds, on which int8 is calibrated.

Their words do not matter, their variety does: what is measured is the largest magnitude of every channel, and channels
with outliers show them on any text.
"""

from __future__ import annotations

CALIBRATION_TEXTS = (
    "A train leaves the station at 9:40 and travels 168 km at an average speed of 84 km/h. It then waits 25 minutes "
    "and returns at 96 km/h. At what time does it arrive back? Show every step of your calculation.",
    "def merge(left, right):\n    out = []\n    while left and right:\n"
    "        out.append((left if left[0] <= right[0] else right).pop(0))\n    return out + left + right\n\n"
    "What does merge([1, 4, 9], [2, 3, 10]) return, and why?",
    "Write a letter of two paragraphs to the owner of a small bookshop by the harbour, asking whether she would like "
    "to host an evening of readings in October, and mention the storm that closed the road last year.",
    "Soit $f(x) = x^3 - 6x^2 + 11x - 6$. Déterminez toutes les racines réelles et dressez le tableau de variations.",
    '{"id": 1042, "items": [{"sku": "A-7", "qty": 3, "price": 19.9}, {"sku": "B-2", "qty": 1, "price": 250.0}]}\n'
    "Convert this JSON into a YAML document and compute the total.",
    "请用三句话解释为什么天空是蓝色的。 Then translate your answer into English and into Spanish.",
    "SELECT c.name, COUNT(*) AS orders FROM customers c JOIN orders o ON o.customer_id = c.id "
    "WHERE o.placed_at >= '2024-01-01' GROUP BY c.name HAVING COUNT(*) > 5 ORDER BY orders DESC; -- why is it slow?",
    "Which of these is NOT a property of a metric space? (A) symmetry (B) the triangle inequality (C) completeness "
    "(D) non-negativity. Answer with one letter.",
    "hi",
)
