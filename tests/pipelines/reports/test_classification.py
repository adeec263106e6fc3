from pipelines.reports.classification import classification_sections

EVALUATION = {
    "step": 3,
    "images": 15,
    "top1": 0.2,
    "top5": 1.0,
    "loss": 2.0,
    "unusable": [["a.jpg", "cut <short>"]],
    "classes": 3,
}
CONFUSION = [[0, 0, 2], [0, 2, 3], [1, 1, 1], [2, 0, 9]]


def html_of(evaluations, class_names):
    return "".join(section.html() for section in classification_sections(evaluations, class_names))


def test_mistakes_are_named_the_commonest_first_and_the_matrix_is_drawn():
    page = html_of([{**EVALUATION, "confusion": CONFUSION}], ["cat", "dog", "eel"])
    assert "Most often taken for another: eel for cat (9); cat for eel (3)." in page
    assert "Confusion matrix" in page
    assert (
        "Always predicting the commonest class gives 60.00%; the standard error of top-1 on this number of "
        "images is 10.33%"
    ) in page
    assert "top-5" not in page, "of three classes"
    assert "cut &lt;short&gt;" in page


def test_thousands_of_classes_are_not_drawn_and_still_named():
    page = html_of([{**EVALUATION, "classes": 21_841, "confusion": [*CONFUSION, [21_840, 7, 1]]}], None)
    assert "21,841 classes are more than a picture can show" in page
    assert "2 for 0 (9); 0 for 2 (3); 21840 for 7 (1).</p>" in page
    assert "<img" not in page


def test_without_an_evaluation_there_is_nothing_to_say():
    assert classification_sections([], None) == []
