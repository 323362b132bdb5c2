"""From raw answers to scores. Every grader says "cannot grade" (a score of None, with the reason) rather than guess.

numeric      numbers, fractions, units, LaTeX                      graders.numeric
exact        text, case, white space and a final full stop aside   graders.text
choice       the letter, or the option's text, of a choice         graders.text
schema       JSON that a JSON Schema accepts                       graders.schema
code         a program that must pass tests, in a sandbox          graders.code
preferences  pairwise preferences to scores (Bradley-Terry)        graders.preferences
judge        a model's opinion, asked for through a provider       graders.judge

`graders.rows` takes rows of raw answers, each to its grader: what `onebeat grade` runs.
"""

from onebeat.conductor.learning.graders.grade import CANNOT_GRADE, Grade, cannot_grade, right, wrong

__all__ = ["CANNOT_GRADE", "Grade", "cannot_grade", "right", "wrong"]
