"""The page in a real browser: keys and buttons make the right lines, and no text can act."""

import pytest

from rating.pairs import Item, pairs, singles
from runtime.errors import visible
from tests.helpers import rows
from tests.rating.browser import PROGRAM, Browser
from tests.rating.helpers import completions, serving

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium")
ITEMS = pairs(completions(), seed=0, count=10)
HOSTILE = [
    "<script>document.title='owned'</script>",
    "</div></section><img src=x onerror=\"document.title='owned'\">",
    "</think><answer><b onclick='x'>bold</b></answer></answer> {{ 7 * 7 }} ${1}",
    "\u202eevil\u2066 \u200b\ufeff\u00ad\x00\x07\x1b[31m end",
    "long" * 2000,
    "\u05e9\u05dc\u05d5\u05dd abc \U0001f469\u200d\U0001f52c e\u0301",
    " \n\t ",
]
TEXTS = "[...document.querySelectorAll('.text')].map(e => e.textContent)"
SCRIPT = "document.createElement('script')"
WIDEST = """Math.max(document.documentElement.scrollWidth,
    ...[...document.querySelectorAll('body *')].map(e => e.getBoundingClientRect().right))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ratings.jsonl"


def act(browser: Browser, place: str, *, key: str = "", click: str = "", **more) -> None:
    """Press or click, and wait until the page says where it is."""
    browser.press(key, **more) if key else browser.click(click)
    browser.wait(f"document.getElementById('place').textContent == '{place}'")
    browser.wait("!isBusy")


def test_keys_and_buttons_make_the_lines(browser, path):
    with serving(path, ITEMS, pictures=2) as server:
        browser.open(server.url)
        assert browser.value(TEXTS) == list(ITEMS[0].texts)
        assert browser.value("document.getElementById('question').textContent") == "Which flower?"
        pictures = "[...document.images].map(i => i.complete && i.naturalWidth)"
        assert browser.value(pictures) == [64, 64]
        assert browser.value("document.getElementById('place').textContent") == "1 of 10"
        for n, key in enumerate(("1", "2", "=", "0", "s"), start=2):
            act(browser, f"{n} of 10", key=key)
        act(browser, "5 of 10", key="u")
        for n, words in ((6, "first"), (7, "tie"), (8, "second"), (9, "skip"), (8, "undo")):
            act(browser, f"{n} of 10", click=words)
        assert browser.value(TEXTS) == list(ITEMS[7].texts)
        browser.press("1", autoRepeat=True)  # a key that is held
        browser.press("1", modifiers=2)  # Ctrl-1 changes the browser's tab
        browser.press("x")
        act(browser, "9 of 10", key="S")
        assert browser.console == []
    made = [row.get("choice", "undo") for row in rows(path)]
    keys = ["left", "right", "tie", "tie", "skip", "undo"]
    assert made == [*keys, "left", "tie", "right", "skip", "undo", "skip"]
    assert rows(path)[-1]["texts"] == list(ITEMS[7].texts)


def test_the_boxes_of_both_answers_are_drawn_where_they_say(browser, path):
    texts = ("<answer>[0, 500, 250, 1000]</answer>", "<answer>[500, 0, 1000, 1000]</answer>")
    places = """(() => {
        const image = document.images[0].getBoundingClientRect();
        return [...document.querySelectorAll("rect")].map(rect => {
            const r = rect.getBoundingClientRect();
            return [rect.getAttribute("class"), (r.x - image.x) / image.width,
                    (r.y - image.y) / image.height, r.width / image.width, r.height / image.height];
        });
    })()"""
    with serving(path, [Item("q", 1, texts)], target="[1, 2, 3, 4]", pictures=2) as server:
        browser.open(server.url)
        (one, *first), (two, *second) = browser.value(places)
        assert (one, two) == ("first", "second") and browser.console == []
        assert first == pytest.approx([0, 0.5, 0.25, 0.5], abs=0.03)
        assert second == pytest.approx([0.5, 0, 0.5, 1], abs=0.03)
        colours = "[...document.querySelectorAll('rect, h2')].map(e => getComputedStyle(e)"
        strokes = browser.value(f"{colours}.stroke)")[:2]
        assert strokes == browser.value(f"{colours}.color)")[2:] and len({*strokes}) == 2


def test_a_second_start_goes_on_and_the_last_page_has_the_summary(browser, path):
    for first, keys in ((1, "1212"), (5, "=12s1")):
        with serving(path, ITEMS) as server:
            browser.open(server.url)
            assert browser.value(TEXTS) == list(ITEMS[first - 1].texts)
            for n, key in enumerate(keys, start=first + 1):
                act(browser, f"{n} of 10", key=key)
    with serving(path, ITEMS) as server:
        browser.open(server.url)
        browser.press("2")
        browser.wait("document.getElementById('heading').textContent == 'All rated'")
        text = browser.value("document.getElementById('work').innerText")
        assert "10 pairs: 4 left better, 4 right better, 1 ties, 1 skipped" in text
        assert "of 1 judged twice" in text
        act(browser, "10 of 10", key="u")
        assert browser.value(TEXTS) == list(ITEMS[9].texts)


def test_scores_have_a_key_each(browser, path):
    items = singles(completions(), seed=0, count=9)
    with serving(path, items, scale=5) as server:
        browser.open(server.url)
        assert browser.value(TEXTS) == list(items[0].texts)
        for n, key in enumerate("15s3", start=2):
            act(browser, f"{n} of 9", key=key)
        act(browser, "4 of 9", key="u")
        browser.press("6")
        browser.press("=")
        act(browser, "5 of 9", click="best")
    scores = [row.get("score") for row in rows(path) if row["kind"] == "score"]
    assert scores == [1, 5, None, 3, 5]


def test_a_page_that_is_out_of_date_says_so_and_shows_what_comes_now(browser, path):
    with serving(path, ITEMS) as server:
        browser.open(server.url)
        server.session.act(0, "left")  # another window
        browser.press("2")
        browser.wait("document.getElementById('place').textContent == '2 of 10'")
        browser.wait("document.getElementById('message').textContent.includes('out of date')")
        act(browser, "3 of 10", key="2")
        assert browser.value("document.getElementById('message').textContent") == ""
    browser.press("1")
    browser.wait("document.getElementById('message').textContent.includes('does not answer')")
    assert [row["choice"] for row in rows(path)] == ["left", "right"]


def test_without_the_token_the_page_shows_nothing(browser, path):
    with serving(path, ITEMS) as server:
        browser.send("Page.navigate", url=server.url.split("#")[0])
        browser.wait("document.getElementById('message')?.textContent.includes('has printed')")
        assert browser.value(TEXTS) == [] and browser.value("document.images.length") == 0


@pytest.mark.parametrize("width", [1300, 400])
def test_hostile_text_is_shown_and_does_nothing_and_no_window_is_too_narrow(browser, path, width):
    sides = zip(HOSTILE[::2], [*HOSTILE[1::2], "x"], strict=True)
    items = [Item("q", 1, texts) for texts in sides]
    with serving(path, items, question=HOSTILE[1] + "w" * 900, pictures=2) as server:
        browser.open(server.url, width)
        for n in range(4):
            texts = [visible(text) for text in items[n].texts]
            shown = browser.value(TEXTS)
            assert [text.removesuffix("(empty)") for text in shown] == texts
            assert browser.value(WIDEST) <= width
            if n < 3:
                act(browser, f"{n + 2} of 4", key="1")
        columns = "new Set([...document.querySelectorAll('#texts section')].map(e => e.offsetLeft))"
        assert browser.value(f"{columns}.size") == (2 if width > 700 else 1)
        assert browser.value("document.title") == "Rate completions"
        question = browser.value("document.getElementById('question').textContent")
        assert question == HOSTILE[1] + "w" * 900
        inside = "#work script, #work img:not(.frame > img), #work a, #work b, #work [onclick]"
        assert browser.value(f"document.querySelectorAll('{inside}').length") == 0
        assert browser.console == []
        # The policy is in force: even if the page had a fault, markup and scripts would be refused.
        for fault in ("document.body.innerHTML = '<p>x'", f"{SCRIPT}.text = '1'"):
            with pytest.raises(AssertionError, match="requires 'Trusted"):
                browser.value(fault)
        browser.value(f"new Image().src = '{server.url.split('#')[0]}x.png'")
        assert "violates" in "".join(browser.console)
    assert [row["texts"] for row in rows(path)] == [list(item.texts) for item in items[:3]]
