import re

from pipelines.reports.segmentation import segmentation_sections

NAMES = ["road", "sky & cloud", "tree"]
FOUND = {
    "step": 8,
    "images": 5,
    "mean_iou": 0.5,
    "mean_accuracy": 0.625,
    "overall_accuracy": 0.7,
    "iou": [0.25, 0.75, None],
    "accuracy": [0.5, 0.75, None],
    "confusion": [[2, 2, 0], [1, 14, 1], [0, 0, 0]],
    "unusable": [[f"{number}.png", "ids < 0"] for number in range(25)],
    "test": {"stride": 21, "ratios": [0.5, 1.0], "flip": True},
    "pictures": None,
}


def html_of(class_names):
    return "".join(section.html() for section in segmentation_sections("run", [FOUND], class_names))


def rows(page):
    return [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", page)]


def test_the_commonest_class_comes_first_and_one_without_pixels_has_no_figures():
    assert rows(html_of(NAMES))[-3:] == [
        ["sky &amp; cloud", "80.0%", "75.0%", "75.0%", "road 6%"],
        ["road", "20.0%", "25.0%", "50.0%", "sky &amp; cloud 50%"],
        ["tree", "0.0%", "", "", ""],
    ]


def test_all_unusable_images_are_counted_and_some_are_named_and_the_way_of_testing_is_said():
    page = html_of(None)
    assert "<p>25 images or annotations could not be used and do not count:" in page
    assert (page.count("<li>"), page.count("<code>19.png</code> ids &lt; 0"), page.count("20.png")) == (
        20,
        1,
        0,
    )
    assert ["scales 0.5, 1, mirrored too, windows 21 px apart", "50.00%", "62.50%", "70.00%"] in rows(page)
    assert segmentation_sections("run", [], None) == []
