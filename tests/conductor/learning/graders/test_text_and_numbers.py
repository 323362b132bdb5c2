"""Numbers, text and letters: what is right, what is wrong, and what cannot be told."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onebeat.conductor.learning.graders.numeric import boxed, grade_numeric, parse
from onebeat.conductor.learning.graders.schema import grade_schema
from onebeat.conductor.learning.graders.text import grade_choice, grade_exact

RIGHT, WRONG, UNKNOWN = 1.0, 0.0, None


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("3", "3", RIGHT),
        ("The total is 1,234 apples.", "1234", RIGHT),
        ("#### 70000", "# 70000", UNKNOWN),
        ("So 2 + 3 = 5.\n#### 5", "5", RIGHT),
        ("We get \\boxed{\\frac{3}{4}}.", "0.75", RIGHT),
        ("We get \\boxed{\\dfrac{3}{4}}.", "\\frac34", RIGHT),
        ("\\boxed{-\\frac{1}{2}}", "-0.5", RIGHT),
        ("the answer is 3/4", "6/8", RIGHT),
        ("50\\%", "0.5", UNKNOWN),
        ("50\\%", "50", RIGHT),
        ("50%", "50 percent", RIGHT),
        ("It is 2.5 km.", "2500 m", RIGHT),
        ("2.5 kg", "2.5 km", WRONG),
        ("90 minutes", "1.5 hours", RIGHT),
        ("$18", "18", RIGHT),
        ("$18$", "18", RIGHT),
        ("18 dollars", "$18.00", RIGHT),
        ("1e3", "1000", RIGHT),
        ("6.02 \\times 10^{23}", "602000000000000000000000", RIGHT),
        ("3.14", "3.1416", RIGHT),
        ("3.2", "3.1416", WRONG),
        ("0.333", "1/3", RIGHT),
        ("0.3", "1/3", WRONG),
        ("x = 7", "7", RIGHT),
        ("−4", "-4", RIGHT),
        ("**42**", "42", RIGHT),
        ("45^\\circ", "45", RIGHT),
        ("I do not know.", "4", UNKNOWN),
        ("", "4", UNKNOWN),
        ("\\boxed{x+1}", "4", UNKNOWN),
        ("4", "x + 1", UNKNOWN),
        ("1/0", "0", UNKNOWN),
        ("the answer is: 12 because 3 of 15 fell", "12", RIGHT),
        ("the answer is: 3 + 4 = 7", "7", RIGHT),
        ("5 miles", "5 km", WRONG),
        ("8.04672 km", "5 miles", RIGHT),
        ("5 feet", "5 m", WRONG),
        ("5 lb", "5 kg", WRONG),
        ("12 euros", "$12", UNKNOWN),
        ("It costs 12 euros.", "$12", UNKNOWN),
        ("5 lb", "5 lbs", RIGHT),
        ("5 pounds", "5 kg", UNKNOWN),
        ("5 furlongs", "5 km", UNKNOWN),
        ("It is 5 furlongs.", "5 km", UNKNOWN),
        ("It is 5 in total.", "5 km", RIGHT),
        ("36 km/h", "10 m/s", RIGHT),
        ("5 m/s", "5 m", WRONG),
        ("3 m²", "3 m", WRONG),
        ("20 °C", "20 °F", UNKNOWN),
        ("0.00", "0.0031", WRONG),
        ("0.01", "0.0149", WRONG),
        ("3.14", "3.14159265", RIGHT),
        ("6.02e23", "6.022e23", RIGHT),
        ("2\\sqrt{3}", "2", UNKNOWN),
        ("$2\\sqrt{3}$", "3", UNKNOWN),
        ("3\\pi", "3", UNKNOWN),
        ("The answer is 3π", "3", UNKNOWN),
        ("2^10", "2", WRONG),
        ("2^10", "1024", RIGHT),
        ("2**10", "1024", RIGHT),
        ("$2^{10}$", "1024", RIGHT),
        ("3x + 2", "3", UNKNOWN),
        ("3x + 2", "2", UNKNOWN),
        ("The result is 3 + 4", "4", UNKNOWN),
        ("the answer is not 7", "7", UNKNOWN),
        ("I don't think the answer is 7", "7", UNKNOWN),
        ("It isn't 7.", "7", UNKNOWN),
        ("It is more than 7.", "7", UNKNOWN),
        ("It's not 5, it's 7", "7", RIGHT),
        ("either 3 or 4", "4", UNKNOWN),
        ("3 or 4", "4", UNKNOWN),
        ("the answer is 3 or 4", "3", UNKNOWN),
        ("3 apples or 4 apples", "4", UNKNOWN),
        ("3-5", "3", UNKNOWN),
        ("3–5", "5", UNKNOWN),
        ("between 3 and 5", "5", UNKNOWN),
        ("3, 4", "4", UNKNOWN),
        ("x = 5, y = 6", "6", UNKNOWN),
        ("5 feet 3 inches", "3 inches", WRONG),
        ("1 1/2", "1.5", RIGHT),
        ("1½", "1.5", RIGHT),
        ("1\\frac{1}{2}", "1.5", RIGHT),
        ("1.5 million", "1500000", RIGHT),
        ("about 1.5 million people", "1,500,000", RIGHT),
        ("1 000 000", "1000000", RIGHT),
        ("1.000.000", "1", UNKNOWN),
        ("3,14", "3", UNKNOWN),
        ("It is 3:30", "30", UNKNOWN),
        ("Adding 3 and 4 gives 7.", "7", RIGHT),
        ("The answer is 7. Wait, the answer is 8", "8", RIGHT),
        ("**Answer:** $7$.", "7 km", RIGHT),
        ("It costs \\$18.", "$18", RIGHT),
        ("f(3)", "3", UNKNOWN),
        ("It is log 2.", "2", UNKNOWN),
        ("It is the square root of 2.", "2", UNKNOWN),
        ("The answer is 5!", "5", UNKNOWN),
        ("Therefore, she has 3 * 4 = 12 eggs.", "12", RIGHT),
        ("$1.5 million", "1500000", RIGHT),
        ("$$\n42\n$$", "42", RIGHT),
        ("There is no number but H2O", "2", UNKNOWN),
        ("1 hour 30 minutes", "90 minutes", RIGHT),
        ("1 hour and 30 minutes", "1.5 hours", RIGHT),
        ("The trip takes 2 min 5 s.", "125 seconds", RIGHT),
        ("2 hours, 15 minutes and 10 seconds", "8110 s", RIGHT),
        ("1h30m", "90 min", RIGHT),
        ("90 minutes", "1 hour 30 minutes", RIGHT),
        ("\\boxed{1 \\text{ hour } 30 \\text{ minutes}}", "90 minutes", RIGHT),
        ("1 hour 30 minutes", "1 hour", WRONG),
        ("1 hour 30 minutes", "90", UNKNOWN),
        ("90", "1 hour 30 minutes", UNKNOWN),
        ("1h30", "90 minutes", UNKNOWN),
        ("1 hour 90 minutes", "150 minutes", UNKNOWN),
        ("30 minutes and 1 hour", "90 minutes", UNKNOWN),
        ("2 hours and 30 minutes respectively", "150 minutes", UNKNOWN),
        ("1 hour, then 30 minutes more", "90 minutes", UNKNOWN),
        ("between 1 hour 30 minutes and 2 hours", "2 hours", UNKNOWN),
        ("90 minutes (1 hour 30 minutes)", "90 minutes", RIGHT),
        ("6 ft 2 in", "74 inches", RIGHT),
        ("5 feet 3 in total", "63 inches", UNKNOWN),
        ("3 pounds 4 ounces", "52 oz", RIGHT),
        ("1 dollar and 50 cents", "$1.50", RIGHT),
        ("5'3", "3", UNKNOWN),
        ("50%", "1/2", UNKNOWN),
        ("0.125", "12.5%", UNKNOWN),
        ("12.5%", "0.25", WRONG),
        ("1'234'567", "567", UNKNOWN),
        ("3.2·10⁵", "320000", RIGHT),
        ("10⁵", "100000", RIGHT),
        ("2³", "8", RIGHT),
        ("\\frac{3}{-4}", "-0.75", RIGHT),
        ("\\frac{-3}{-4}", "-0.75", UNKNOWN),
        ("\\cfrac{1}{2}", "0.5", RIGHT),
        ("\\fbox{7}", "7", RIGHT),
        ("\\boxed{3} or \\boxed{4}", "4", UNKNOWN),
        ("First \\boxed{3}. Correction: \\boxed{4}", "4", RIGHT),
        ("\\boxed{4} and again \\boxed{4}", "4", RIGHT),
        ("minus 5", "5", WRONG),
        ("The answer is negative 5.", "-5", RIGHT),
        ("the total minus 5", "-5", UNKNOWN),
        ("–5", "5", UNKNOWN),
        ("5 ± 1", "5", UNKNOWN),
        ("5 +/- 1", "1", UNKNOWN),
        ("x = ±3", "3", UNKNOWN),
        ("5~7", "7", UNKNOWN),
        ("up to 5", "5", UNKNOWN),
        ("over $5", "5", UNKNOWN),
        ("5 or more", "5", UNKNOWN),
        ("5 apples or more", "5", UNKNOWN),
        ("about 5", "5", RIGHT),
        ("about 5", "5.2", UNKNOWN),
        ("≈ 5", "5.2", UNKNOWN),
        ("about 5", "9", WRONG),
        ("3 and a half", "3", UNKNOWN),
        ("$5M", "5", UNKNOWN),
        ("5M", "5000000", UNKNOWN),
        ("101 in binary", "101", UNKNOWN),
        ("1010 (base 2)", "2", UNKNOWN),
        ("This is step 5", "5", UNKNOWN),
        ("$x^2$ where x = 3, so 9", "3", UNKNOWN),
        ("1/6 (about 16.7%)", "1/6", UNKNOWN),
        ("He has 5 apples left out of 12.", "12", UNKNOWN),
    ],
)
def test_numbers(answer: str, reference: str, score: float | None) -> None:
    assert grade_numeric(answer, reference).score == score, grade_numeric(answer, reference).reason


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_every_fraction_is_read_however_it_is_written(above: int, below: int) -> None:
    value = Fraction(above, below)
    for text in (f"{above}/{below}", f"\\frac{{{above}}}{{{below}}}", f"$\\frac{{{above}}}{{{below}}}$"):
        found = parse(text)
        assert found is not None, text
        assert found.value == value, text
    plain = parse(f"{above:,}")
    assert plain is not None
    assert plain.value == above


@settings(max_examples=60)
@given(st.text(max_size=80))
def test_no_text_breaks_a_grader(text: str) -> None:
    for grade in (
        grade_numeric(text, "1"),
        grade_numeric("1", text),
        grade_exact(text, text),
        grade_choice(text, "A"),
        grade_schema(text, {"type": "object"}),
    ):
        assert grade.score in (RIGHT, WRONG, UNKNOWN)
        assert grade.reason


@pytest.mark.parametrize(
    "piece", ["1 ", "** ", "x [", "$", "\\frac{", "(B) ", "``` \n", "answer is ", "1,000 ", "1 hour ", "\\boxed{1} or "]
)
def test_an_answer_that_repeats_itself_is_graded_too(piece: str) -> None:
    """Each took minutes while a grader looked back at all that stands before, once for each piece."""
    text = piece * 50_000
    for grade in (
        grade_numeric(text, "5"),
        grade_choice(text, "A", letters="AB", options=["a", "b"]),
        grade_exact(text, "5"),
        grade_schema(text, {"type": "object"}),
    ):
        assert grade.reason


def test_boxes_may_be_nested() -> None:
    assert boxed("so \\boxed{1} then \\boxed{\\frac{a}{b}}") == "\\frac{a}{b}"
    assert boxed("\\boxed{open") is None


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("The Eiffel Tower.", "eiffel tower", RIGHT),
        ("Thinking...\nAnswer: Paris", "Paris", RIGHT),
        ("\\boxed{\\text{blue}}", "blue", RIGHT),
        ("Paris, France", "Paris", WRONG),
        ("**Paris!**", "Paris", RIGHT),
        ('The answer is: "Paris".', "Paris", RIGHT),
        ("[0,1)", "(0,1]", WRONG),
        ("The answer is [0, 1).", "[0,1)", RIGHT),
        ("$\\left[0, 1\\right)$", "[0,1)", RIGHT),
        ("n!", "n", WRONG),
        ("The answer is n!", "n!", RIGHT),
        ("!x", "x", WRONG),
        ("(3, 4)", "[3, 4]", WRONG),
        ("(3,4)", "(3, 4)", RIGHT),
        ("x²", "x2", WRONG),
        ("-x", "x", WRONG),
        ("\\boxed{Paris} or \\boxed{Rome}", "Rome", UNKNOWN),
        ("", "Paris", UNKNOWN),
        ("Paris", "", UNKNOWN),
    ],
)
def test_exact_text(answer: str, reference: str, score: float | None) -> None:
    assert grade_exact(answer, reference).score == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("B", "B", RIGHT),
        ("(b)", "B", RIGHT),
        ("The answer is (C).", "C", RIGHT),
        ("**Answer: D**", "D", RIGHT),
        ("A. because of gravity", "A", RIGHT),
        ("First (A) looks right, but (B) fits.\nAnswer: B", "A", WRONG),
        ("It could be (A) or (B).", "A", UNKNOWN),
        ("\\boxed{\\text{E}}", "E", RIGHT),
        ("I think so", "B", UNKNOWN),
        ("B", "7", UNKNOWN),
        ("Option A is wrong. Option B is wrong too. It must be C.", "C", RIGHT),
        ("Option A is wrong. Option B is wrong too.", "B", UNKNOWN),
        ("The answer is A bit subtle, but it is (C)", "C", RIGHT),
        ("The answer is A bit subtle.", "A", UNKNOWN),
        ("Answer: I don't know", "I", UNKNOWN),
        ("Answer: I'm not sure", "I", UNKNOWN),
        ("The answer is not B.", "B", UNKNOWN),
        ("I don't think the answer is B.", "B", UNKNOWN),
        ("I don't think the answer is B. The answer is D because it rains.", "D", RIGHT),
        ("The answer is A or B.", "A", UNKNOWN),
        ("The answer is (A) or (B).", "B", UNKNOWN),
        ("The answer is A. On second thought, it is B.", "A", UNKNOWN),
        ("Option D is the correct one.", "D", RIGHT),
        ("(A) is wrong", "A", UNKNOWN),
        ("So B is correct.", "B", RIGHT),
        ("B is not correct.", "B", UNKNOWN),
        ("The answer is `B`", "B", RIGHT),
        ("The answer is $\\textbf{B}$.", "B", RIGHT),
        ("The best choice is E", "E", RIGHT),
        ("The answer is C, not B.", "C", RIGHT),
        ("A. fish\nB. fowl", "A", UNKNOWN),
        ("**The correct answer is: (B) fowl**", "B", RIGHT),
        ("b)", "B", RIGHT),
        ("b", "B", RIGHT),
        ("c", "B", WRONG),
        ("answer: b", "B", RIGHT),
        ("Answer: a.", "A", RIGHT),
        ("answer: a\nExplanation: b is wrong", "A", RIGHT),
        ("the answer is a\nbig problem", "A", UNKNOWN),
        ("Answer: a dog", "A", UNKNOWN),
        ("a dog", "A", UNKNOWN),
        ("The answer is (a).", "A", RIGHT),
        ("the answer is i think", "I", UNKNOWN),
        ("It is a trap.", "A", UNKNOWN),
        ("It is (d).", "D", RIGHT),
        ("I choose a", "A", UNKNOWN),
        ("Option b is correct.", "B", RIGHT),
        ("b) fowl", "B", RIGHT),
        ("a) fish\nb) fowl", "A", UNKNOWN),
        ("(a) or (b)", "A", UNKNOWN),
        ("answer: b or c", "B", UNKNOWN),
        ("The answer is not (b)", "B", UNKNOWN),
        ("(a) is wrong", "A", UNKNOWN),
        ("The answer is vitamin c", "C", UNKNOWN),
        ("Let (a) be the first step. So it is 5.", "A", UNKNOWN),
        ("\\boxed{b}", "B", RIGHT),
        ("\\boxed{a} or \\boxed{b}", "B", UNKNOWN),
    ],
)
def test_letters(answer: str, reference: str, score: float | None) -> None:
    assert grade_choice(answer, reference).score == score, grade_choice(answer, reference).reason


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Dry ice.", RIGHT),
        ("The answer is dry ice.", RIGHT),
        ("It sublimates, so it must be dry ice.", RIGHT),
        ("Answer: ice", WRONG),
        ("It is not dry ice.", UNKNOWN),
        ("Either dry ice or steam.", UNKNOWN),
        ("The answer is A: dry ice", UNKNOWN),
        ("Answer: (B) dry ice", RIGHT),
        ("The answer is plasma.", UNKNOWN),
    ],
)
def test_an_options_text_is_its_letter(answer: str, score: float | None) -> None:
    grade = grade_choice(answer, "B", letters="ABC", options=["ice", "dry ice", "steam"])
    assert grade.score == score, grade.reason
