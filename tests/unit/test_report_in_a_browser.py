"""The page in a real browser, if one is installed."""

import json
import re
import shutil
import subprocess
from html import escape

import pytest

from local.report import render
from recorded import record

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HEADLESS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Open HTML in headless Chromium; returns the resulting DOM and the console's messages."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        pytest.skip("needs Chromium: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")

    def open_page(html, fragment=""):
        (folder / "report.html").write_text(html, encoding="utf-8")
        options = [*HEADLESS, "--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
        command = [browser, *options, "--dump-dom", f"{(folder / 'report.html').as_uri()}{fragment}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout, re.findall(r"CONSOLE.*", done.stderr)

    return open_page


def test_the_execution_in_the_url_fragment_is_shown(opened):
    page, console = opened(render.render(record(25)), "#execution-21")
    assert console == []
    assert f"State machine: {render.breakable('test/1/0021.png')}" in page
    assert "1, confidence 0.400: sent to review" in page
    on = re.findall(r'class="state on" data-state="(\w+)"', page)
    assert on == [
        "RetrieveImage",
        "ClassifyImage",
        "CheckConfidence",
        "IsAccepted",
        "SendToReview",
        "PublishImageNeedsReview",
        "ThresholdConfidenceNotMet",
    ]
    assert "1-6b06434b-000000000000000000000015" in page


@pytest.mark.parametrize("fragment", ["", "#execution-999", "#execution-x", "#confidence"])
def test_without_a_known_execution_all_of_them_are_shown(opened, fragment):
    page, console = opened(render.render(record(25)), fragment)
    assert console == []
    assert "State machine: all executions" in page


def test_a_user_can_select_navigate_sort_and_filter(opened):
    steps = """
      const said = [], title = () => byId("execution-title").textContent.split(": ")[1];
      const shown = () => all(".sortable tbody tr").filter((row) => !row.hidden);
      const column = (at) => shown().map((row) => row.cells[at].textContent);
      const wait = () => new Promise((done) => addEventListener("popstate", () => setTimeout(done), { once: true }));
      (async () => {
        document.querySelector('.card[href="#execution-20"]').click();
        said.push(title(), document.activeElement.id, all(".drawing .state.on").length);
        byId("next").click();
        said.push(title(), location.hash);
        document.querySelector('.dot[data-execution="24"]').dispatchEvent(new MouseEvent("click", { bubbles: true }));
        said.push(title(), all(".drawing .state.error").length, byId("next").disabled);
        history.back();
        await wait();
        said.push(title());
        byId("clear").click();
        said.push(title(), all(".drawing .state.on").length, byId("chosen").hidden);
        all(".sortable button")[4].click();
        said.push(column(4).slice(0, 2), column(0).at(-1));
        all(".sortable button")[4].click();
        said.push(column(4)[0], column(0).at(-1));
        byId("filter").value = "FOR review";
        byId("filter").dispatchEvent(new Event("input"));
        said.push(byId("shown").textContent, column(1).length);
        document.title = JSON.stringify(said);
      })();
    """
    html = re.sub("script-src '[^']*'", "script-src 'unsafe-inline'", render.render(record(25)))
    page, console = opened(html.replace("</body>", f"<script>{steps}</script></body>"))
    assert console == []
    assert json.loads(re.search("<title>(.*)</title>", page)[1]) == [
        *("test/0/0020.png", "execution-title", 7),
        *("test/1/0021.png", "#execution-21"),
        *("test/4/0024.png", 1, True),
        "test/1/0021.png",
        *("all executions", 8, True),
        *(["0.400", "0.450"], "test/4/0024.png"),
        *("0.950", "test/4/0024.png"),
        *("4 of 25", 4),
    ]


def test_the_script_handles_missing_data_and_hostile_text(opened):
    made = record(25)
    made["executions"][24] |= {"states": [], "traces": [], "log": None, "execution_arn": None, "seconds": None}
    made["executions"][24] |= {"cause": "<img src=x onerror=alert(1)>", "error": None}
    page, console = opened(render.render(made), "#execution-24")
    assert console == []
    assert "There is no history of this execution." in page
    assert "Cause: &lt;img src=x" in page


@pytest.mark.parametrize("width", [400, 1200, 1600])
def test_no_table_is_wider_than_the_window(opened, width):
    html = re.sub(r"<meta http-equiv=.*>", "", render.render(record(25)))  # it would block this test's script
    measure = """<script>
      const cut = [...document.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth);
      parent.document.title = [innerWidth, ...cut.map((box) => box.textContent)].join();
    </script></body>"""
    framed = escape(html.replace("</body>", measure))  # a window has a minimum width
    page, console = opened(
        f'<title></title><iframe scrolling="no" style="width: {width}px; border: 0" srcdoc="{framed}"></iframe>'
    )
    assert console == [] and re.search(r"<title>(.*?)</title>", page, re.DOTALL)[1] == str(width)


def test_the_content_security_policy_blocks_requests_and_foreign_scripts(opened):
    html = render.render(record(1))
    _, console = opened(html.replace("</main>", '<img src="http://127.0.0.1:9/x.png"><script>alert(1)</script></main>'))
    assert len(console) == 2
    assert all("Content Security Policy" in line for line in console)
