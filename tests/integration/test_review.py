"""make review in headless Chromium, on the deployed stack: keys, undo, two reviewers, lost images, lost connections."""

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from PIL import Image

from browser import BROWSERS, Browser
from local.emulator.processes import clean_environment
from review.table import AlreadyClaimedError
from reviewing import Desk, ReviewServer
from workflow import DIGITS, ROOT, wait_for

pytestmark = pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="needs Chromium: apt-get install chromium")
SHOWN = "document.querySelector('#frame img') && current.painted && byId('name').textContent.includes('{}')"
SAVED = "byId('unsaved').hidden"
SAID = "byId('said').textContent"
PROBLEMS = "byId('problems').innerText"


@pytest.fixture(scope="module")
def browser():
    with contextlib.closing(Browser()) as browser:
        yield browser


@pytest.fixture
def desk(workflow):
    desk = Desk(workflow)
    yield desk
    desk.clear()


@pytest.fixture
def server(desk, stack, tmp_path):
    """Not started yet: it reads at the start what waits for review."""
    server = ReviewServer(stack, tmp_path)
    yield server
    if server.process and server.process.poll() is None:
        server.stop()


@pytest.fixture
def open_page(server, browser):
    """Starts the server and opens its page; checks at the end that the page's script threw nothing."""
    pages = []

    def opened(**window):
        if not server.process:
            server.start()
        pages.append(browser.open(server.url, **window))
        pages[-1].wait("started")
        return pages[-1]

    yield opened
    for page in pages:
        assert page.errors() == []
        page.close()


def test_an_image_below_the_threshold_is_reviewed_in_the_browser(workflow, desk, server, open_page, outcome_events):
    execution = workflow.classify("review/seven.png", desk.seven, threshold=1)
    assert execution.error == "THRESHOLD_CONFIDENCE_NOT_MET"
    server.reviewer = "hedy"  # whose event no other test has left
    page = open_page()
    page.wait(SHOWN.format("seven.png"))
    (review,) = desk.table.pending()
    assert page.evaluate("byId('question').textContent") == f"{review.label}?"
    assert "Below the threshold" in page.text() and "threshold is 1" in page.text()
    page.press("3")
    page.wait("byId('question').textContent === 'Nothing waits for review'")
    page.wait(SAVED)
    assert desk.decided() == {"seven.png": ("3", 1)}
    (review,) = desk.table.reviewed()
    assert (review.reviewer, review.execution_arn) == ("hedy", execution.arn)
    event = workflow.message_about(outcome_events, '"hedy"', seconds=20)
    assert event["detail-type"] == "Image Reviewed" and event["detail"]["reviewed_label"] == "3"


def test_decisions_in_the_browser_become_training_data_and_the_accuracy(workflow, desk, open_page, tmp_path):
    unsure = next((DIGITS / "test/3").iterdir()).read_bytes()
    assert workflow.classify("review/unsure.png", unsure, threshold=1).error == "THRESHOLD_CONFIDENCE_NOT_MET"
    for number in range(30):
        desk.add(f"audit-{number}.png", 0.9, label="7")
    page = open_page()
    for _ in range(31):
        page.wait("current && current.painted")
        page.press("3" if "unsure" in page.evaluate("nameOf(current.review)") else "7")
    page.wait(f"!current && {SAVED}")

    def run(*command):
        environment = clean_environment() | workflow.stack.aws_variables
        command = [sys.executable, *command, "--stack", "image-classification", "--output", tmp_path / command[1]]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    run("training/prepare.py", "reviewed")
    assert [path.read_bytes() for path in (tmp_path / "reviewed/train/3").iterdir()] == [unsure]
    assert "accepted images 30 of 30 100.0% 88.4% to 100.0%" in " ".join(run("-m", "local.accuracy").split())
    assert "100.0%<small>95% interval: 88.4% to 100.0%" in (tmp_path / "local.accuracy").read_text()


def test_each_key_decides_and_undo_goes_back_step_by_step(desk, open_page):
    for number in range(5):
        desk.add(f"{number}.png", 0.3 + number / 100)
    page = open_page()
    for number, key in enumerate(["0", "-", ".", "ArrowRight", "7"]):
        page.wait(SHOWN.format(f"{number}.png"))
        page.press(key)
    page.wait(SHOWN.format("3.png"))  # which was skipped
    page.wait(SAVED)
    expected = {"0.png": ("0", 1), "1.png": ("none_of_these", 1), "2.png": ("not_usable", 1), "4.png": ("7", 1)}
    assert desk.decided() == expected
    for number in (4, 3, 2, 1, 0):
        page.press("ArrowLeft")
        page.wait(f"{SAID}.includes('{number}.png: undone.')")
        page.wait(SHOWN.format(f"{number}.png"))
    assert desk.decided() == {} and page.evaluate("byId('undo').disabled")
    for number, key in enumerate("12345"):
        page.wait(SHOWN.format(f"{number}.png"))
        page.press(key)
    page.wait("!current")
    page.wait(SAVED)
    assert desk.decided() == {f"{number}.png": (str(number + 1), 1 if number == 3 else 3) for number in range(5)}
    page.press("Backspace")
    page.wait(SHOWN.format("4.png"))
    assert page.evaluate("byId('left').textContent") == "1 left"


def test_an_undo_within_a_refresh_is_counted_once(desk, open_page):
    for number in range(2):
        desk.add(f"{number}.png", 0.3 + number / 100)
    page = open_page()
    page.wait(SHOWN.format("0.png"))
    page.press("3")
    page.wait(SAVED)
    page.wait("!filling && byId('left').textContent === '1 left'")
    page.evaluate("""(() => {
      const real = fetch;
      globalThis.fetch = async (path, options) => {
        const response = await real(path, options);
        if (path === "undo") await fill();  // whose answer counts what the page has not counted yet
        return response;
      };
    })()""")
    page.press("ArrowLeft")
    page.wait(f"{SAID}.includes('0.png: undone.')")
    assert page.evaluate("byId('left').textContent") == "2 left"


def test_a_page_without_an_image_has_no_buttons_but_undo(desk, open_page):
    desk.add("0.png")
    page = open_page()
    visible = "[...document.querySelectorAll('main button, #frame, #keys')].filter((each) => each.checkVisibility())"
    page.wait(SHOWN.format("0.png"))
    assert page.evaluate(f"{visible}.length") == 16
    page.press("3")
    page.wait("!current && !filling")
    page.wait(SAVED)
    assert page.evaluate(f"{visible}.map((each) => each.id)") == ["undo"]
    assert page.evaluate("[byId('left').textContent, byId('by-label').options.length]") == ["0 left", 1]


def test_a_held_key_and_an_image_that_is_not_painted_decide_nothing(desk, open_page):
    for number in range(2):
        desk.add(f"{number}.png", 0.3 + number / 100)
    page = open_page()
    page.wait(SHOWN.format("0.png"))
    page.evaluate("""(() => {
      const key = (more) => document.dispatchEvent(new KeyboardEvent("keydown", { key: "5", bubbles: true, ...more }));
      key({ repeat: true }); key({ ctrlKey: true });
      byId("keys").click(); key(); byId("keys").click();
      key(); key();  // at once: the second image has not been seen
    })()""")
    page.wait(SHOWN.format("1.png"))
    page.wait(SAVED)
    assert desk.decided() == {"0.png": ("5", 1)}


def test_two_pages_never_show_the_same_image_and_decide_each_once(desk, open_page):
    names = [f"{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        desk.add(name, 0.3 + number / 100)
    pages = [open_page(), open_page()]
    seen = []
    for page in itertools.cycle(pages):
        page.wait("!current ? !filling : current.painted")
        if page.evaluate("!!current"):
            seen.append(page.evaluate("nameOf(current.review)"))
            page.press("4")
        elif all(each.evaluate("!current && !filling") for each in pages):
            break
    for page in pages:
        page.wait(SAVED)
    assert sorted(seen) == sorted(names)
    assert desk.decided() == dict.fromkeys(names, ("4", 1))
    assert all(page.evaluate(PROBLEMS) == "" for page in pages)


def test_a_page_says_when_others_look_at_all_that_is_left(desk, open_page):
    desk.add("0.png")
    first, second = open_page(), open_page()
    first.wait(SHOWN.format("0.png"))
    second.wait("byId('question').textContent === 'Other pages show what is left'")
    assert second.evaluate("byId('left').textContent") == "1 left"
    assert "come back within five minutes" in second.text()
    first.evaluate("dispatchEvent(new Event('pagehide'))")
    wait_for(lambda: desk.claimed() == {"0.png": None})
    second.evaluate("fill()")
    second.wait(SHOWN.format("0.png"))


def test_a_claim_that_expired_is_free_and_one_that_is_renewed_is_not(desk, open_page):
    image = desk.add("0.png")
    review = desk.table.get(*image)
    desk.table.claim(review, "bob", "other page")
    page = open_page()
    assert page.evaluate("!current")
    with pytest.raises(AlreadyClaimedError, match="bob is looking at"):
        desk.table.claim(review, "mary", "a page")
    desk.dynamodb.update_item(
        TableName=desk.table.name, Key=review.key, UpdateExpression="SET claim_expires_at = :past",
        ExpressionAttributeValues={":past": {"N": str(round(time.time()) - 2)}},
    )  # fmt: skip
    wait_for(lambda: page.evaluate("fill().then(() => !!current)"))
    before = desk.table.get(*image).claim_expires_at
    time.sleep(1.1)  # claims have a resolution of a second
    page.evaluate("renew()")
    assert desk.table.get(*image).claim_expires_at > before


def test_what_somebody_else_decided_is_not_overwritten(desk, open_page):
    image = desk.add("0.png")
    desk.add("1.png", 0.6)
    page = open_page()
    page.wait(SHOWN.format("0.png"))
    session = page.evaluate("session")
    desk.table.decide(desk.table.get(*image), "bob", "label", "7", session)
    page.press("3")
    page.wait(f"{PROBLEMS}.includes('AlreadyReviewedError')")
    page.wait(SHOWN.format("1.png"))
    assert "0.png: your decision, 3, was not written." in page.evaluate(PROBLEMS)
    assert "bob: 7" in page.evaluate(PROBLEMS)
    assert desk.decided() == {"0.png": ("7", 1)}


def test_a_decision_waits_for_another_reviewers_claim(desk, open_page):
    image = desk.add("0.png")
    page = open_page()
    page.wait(SHOWN.format("0.png"))
    desk.table.release(desk.table.get(*image), "mary", page.evaluate("session"))  # as if the claim had expired
    desk.table.claim(desk.table.get(*image), "bob", "other page")
    page.press("3")
    page.wait(f"{PROBLEMS}.includes('bob is looking at')")
    assert desk.decided() == {}
    desk.table.release(desk.table.get(*image), "bob", "other page")
    page.wait(SAVED)
    assert page.evaluate(PROBLEMS) == "" and desk.decided() == {"0.png": ("3", 1)}


def test_an_image_that_was_deleted_can_only_be_called_not_usable(desk, open_page):
    _, version = desk.add("0.png")
    desk.workflow.s3.delete_object(Bucket=desk.workflow.bucket, Key="review/0.png", VersionId=version)
    page = open_page()
    page.wait("byId('frame').innerText.includes('ImageDeletedError')")
    assert page.evaluate("[...document.querySelectorAll('#choices button, #none')].every((each) => each.disabled)")
    page.press("3", "-")
    assert page.evaluate("!!current")
    page.press(".")
    page.wait("!current")
    page.wait(SAVED)
    assert desk.decided() == {"0.png": ("not_usable", 1)}


def test_the_version_that_was_classified_is_shown_or_none(desk, open_page):
    unversioned = "review-unversioned"
    desk.workflow.s3.create_bucket(Bucket=unversioned)
    for number, bucket in enumerate(["", unversioned]):
        desk.add(f"{number}.png", 0.3 + number / 100, bucket=bucket, versioned=not bucket)
        wide = io.BytesIO()
        Image.new("L", (640, 20)).save(wide, "PNG")
        desk.workflow.s3.put_object(
            Bucket=bucket or desk.workflow.bucket, Key=f"review/{number}.png", Body=wide.getvalue()
        )
    page = open_page()
    page.wait(SHOWN.format("0.png"))
    assert page.evaluate("current.image.naturalWidth") == 8
    page.press("7")
    page.wait("byId('frame').innerText.includes('ImageReplacedError')")
    assert "uploaded again" in page.evaluate("byId('frame').innerText")


@pytest.mark.parametrize(("kind", "mode"), [("TIFF", "I;16"), ("BMP", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGBA")])
def test_every_format_is_shown(desk, open_page, kind, mode):
    data = io.BytesIO()
    Image.new(mode, (300, 200)).save(data, kind)
    desk.add("0", data=data.getvalue())
    page = open_page()
    page.wait(SHOWN.format("0"))
    assert page.evaluate("[current.image.naturalWidth, current.image.naturalHeight]") == [300, 200]


def test_bytes_that_are_no_image_are_named(desk, open_page):
    desk.add("0.png", data=b"<script>alert(1)</script>")
    page = open_page()
    page.wait("byId('frame').innerText.includes('ImageUnreadableError')")
    page.press(".")
    page.wait("!current")


def test_decisions_without_a_connection_are_kept_and_written_once(desk, open_page):
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        desk.add(name, 0.3 + number / 100)
    page = open_page()
    page.wait("ahead.length === 3 && ahead.every((each) => each.image)")
    page.offline(True)
    for name in names[:3]:
        page.wait(SHOWN.format(name))
        page.press("2")
    page.wait("byId('unsaved').textContent === '3 not saved yet'")
    page.wait(f"{PROBLEMS}.includes('ConnectionLostError')")
    leaving = "dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    assert page.evaluate(leaving) is False  # the browser asks
    assert desk.decided() == {}
    page.press("ArrowLeft")  # waits too, and then takes the last one back
    page.offline(False)
    page.wait(SAVED)
    page.wait(f"{SAID}.includes('2.png: undone.')")
    page.wait(f"{PROBLEMS} === ''")
    assert page.evaluate(leaving) is True
    assert desk.decided() == {"0.png": ("2", 1), "1.png": ("2", 1)}
    assert sorted(each.revision for each in desk.table.pending()) == [0, 2]


def test_a_server_that_is_killed_within_a_decision_loses_and_doubles_nothing(desk, server, open_page):
    for number in range(3):
        desk.add(f"{number}.png", 0.3 + number / 100)
    page = open_page()
    page.wait("ahead.length === 2 && ahead.every((each) => each.image)")
    page.wait(SHOWN.format("0.png"))
    server.process.send_signal(signal.SIGSTOP)  # accepts the request, and does not answer
    page.press("2")
    page.wait("byId('unsaved').textContent === '1 not saved yet'")
    server.stop(signal.SIGKILL)
    page.wait(f"{PROBLEMS}.includes('ConnectionLostError')")
    page.wait(SHOWN.format("1.png"))
    page.press("3")
    page.wait("byId('unsaved').textContent === '2 not saved yet'")
    page.evaluate("fill()")
    assert page.evaluate("byId('problems').children.length") == 1
    server.start()
    page.wait(SAVED)
    assert desk.decided() == {"0.png": ("2", 1), "1.png": ("3", 1)}
    page.wait(SHOWN.format("2.png"))
    page.press("4")
    page.wait(SAVED)
    assert desk.decided()["2.png"] == ("4", 1)


def test_a_response_that_is_lost_after_the_write_is_no_second_decision(desk, open_page):
    desk.add("0.png")
    page = open_page()
    page.wait(SHOWN.format("0.png"))
    page.evaluate("""(() => {
      const real = fetch;
      globalThis.fetch = async (path, options) => {
        const response = await real(path, options);
        if (path !== "decide") return response;
        globalThis.fetch = real;
        throw new TypeError("Failed to fetch");
      };
    })()""")
    page.press("2")
    page.wait(f"{PROBLEMS}.includes('ConnectionLostError')")
    page.wait(SAVED)
    assert page.evaluate(PROBLEMS) == "" and desk.decided() == {"0.png": ("2", 1)}


def test_what_a_page_could_not_save_before_it_crashed_is_saved_by_the_next(desk, server, browser, open_page):
    desk.add("0.png")
    server.start()
    crashing = browser.open(server.url)
    crashing.wait(SHOWN.format("0.png"))
    crashing.offline(True)
    crashing.press("2")
    crashing.wait("byId('unsaved').textContent === '1 not saved yet'")
    other = open_page()  # while it lives, it saves its decisions itself
    other.wait("!filling")
    assert desk.decided() == {}
    browser.send("Target.closeTarget", targetId=crashing.target)
    page = open_page()
    page.wait(SAVED)
    wait_for(lambda: desk.decided() == {"0.png": ("2", 1)})
    assert page.evaluate("localStorage.length") == 0


def test_ctrl_c_ends_the_server_and_gives_up_its_claims(desk, server, open_page):
    desk.add("0.png")
    page = open_page()
    page.wait(SHOWN.format("0.png"))
    assert desk.claimed() == {"0.png": page.evaluate("session")}
    code, printed = server.stop()
    assert (code, printed.splitlines()[-1]) == (0, "Ended. Claims that were given up: 1")
    assert desk.claimed() == {"0.png": None}


def test_filters_show_what_they_name(desk, open_page):
    desk.add("nine.png", 0.3, "9")
    desk.add("four.png", 0.4, "4")
    desk.add("audit.png", 0.9, "4")
    page = open_page()
    choose = "(byId('{}').value = '{}', byId('{}').dispatchEvent(new Event('change', {{ bubbles: true }})))"
    page.wait(SHOWN.format("nine.png"))
    assert page.evaluate("byId('left').textContent") == "3 left"
    page.evaluate(choose.format("by-label", "4", "by-label"))
    page.wait(SHOWN.format("four.png"))
    page.wait("byId('left').textContent === '2 left with these filters'")
    page.evaluate(choose.format("by-reason", "audit", "by-reason"))
    page.wait(SHOWN.format("audit.png"))
    assert "Audit: accepted as 4 with confidence 0.900" in page.text()
    page.evaluate(choose.format("by-age", "3600", "by-age"))
    page.wait("byId('question').textContent === 'Nothing is left with these filters'")
    page.wait("!filling")
    assert set(desk.claimed().values()) == {None}


def test_one_of_many_labels_is_found_by_typing(desk, open_page):
    labels = [f"species-{number}" for number in range(60)]
    for number in range(2):
        desk.add(f"{number}.png", 0.3 + number / 100, "species-7", labels=labels)
    page = open_page()
    page.wait(SHOWN.format("0.png"))
    assert page.evaluate("byId('choices').children.length") == 9
    page.press("s", "p", "e", "c", "i", "e", "s", "-", "5", "5")
    page.wait("byId('choices').children.length === 1")
    page.press("Enter")
    page.wait(SHOWN.format("1.png"))
    page.press("1")
    page.wait(SAVED)
    assert desk.decided() == {"0.png": ("species-55", 1), "1.png": ("species-7", 1)}


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_window_and_all_is_named_for_screen_readers(desk, open_page, width, dark, tmp_path):
    desk.add(f"{'a-long-name' * 12}.png")
    page = open_page(width=width, height=860, dark=dark)
    page.wait("!!current?.painted")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.send("Accessibility.enable")
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in ("button", "combobox", "image", "checkbox", "heading")
    ]
    assert all(name for _, name in named)
    assert ("button", "9, 50.0%, the model's label, key 9") in named
    assert any(role == "image" and name.startswith("Image to review: review/a-long-name") for role, name in named)
    roles = {node["role"]["value"] for node in nodes}
    assert {"status", "alert", "main", "group"} <= roles
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(tmp_path.__class__(folder) / f"review-{width}-{'dark' if dark else 'light'}.png")


def test_another_program_on_this_machine_needs_the_token(server):
    server.start()
    for url in (server.url.replace("/" + server.url.split("/")[3], "/guessed"), f"http://127.0.0.1:{server.port}/"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url)
        assert refused.value.code == 403 and json.load(refused.value)["error"]["code"] == "WrongTokenError"


def test_the_reviewers_policy_is_enough_and_names_them(desk, stack, open_page, server):
    desk.add("0.png")
    iam, sts = stack.client("iam"), stack.client("sts")
    statement = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    role = iam.create_role(RoleName="Reviewers", AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    server.use(sts.assume_role(RoleArn=role, RoleSessionName="mary@example.com")["Credentials"])
    described = {"Effect": "Allow", "Action": "cloudformation:DescribeStacks", "Resource": "*"}
    unseen = json.dumps({"Version": "2012-10-17", "Statement": [described]})
    # The policy has the stack's ARN; the emulator does not see the stack's name in the body of a request.
    iam.put_role_policy(RoleName="Reviewers", PolicyName="DescribeStacks", PolicyDocument=unseen)
    with pytest.raises(AssertionError, match=r"(?s)AccessDenied.*Query"):
        server.start()
    iam.attach_role_policy(RoleName="Reviewers", PolicyArn=desk.workflow.outputs["ReviewerPolicyArn"])
    server.reviewer = ""
    page = open_page()
    page.wait(SHOWN.format("0.png"))
    page.press("7")
    page.wait(SAVED)
    page.press("ArrowLeft")
    page.wait(SHOWN.format("0.png"))
    page.press("3")
    page.wait(SAVED)
    assert [review.reviewer for review in desk.table.reviewed()] == ["mary@example.com"]


def test_the_documented_queue_receives_the_event_of_an_image_for_review(workflow):
    section = (ROOT / "docs/review.md").read_text().partition("### Events, and a queue of your own")[2]
    resources = section.partition("```yaml\n")[2].partition("```")[0]
    cloudformation, name = workflow.stack.client("cloudformation"), "documented-review-queue"
    cloudformation.create_stack(StackName=name, TemplateBody=f"Resources:\n{resources}")
    cloudformation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})
    queue = cloudformation.describe_stack_resource(StackName=name, LogicalResourceId="ReviewQueue")
    entry = {"Source": "image-classification", "Detail": json.dumps({"s3_key": "review/queued.png"})}
    for kind in ("Image Classified", "Image Needs Review"):
        workflow.stack.client("events").put_events(Entries=[entry | {"DetailType": kind}])
    url = queue["StackResourceDetail"]["PhysicalResourceId"]
    assert workflow.message_about(url, "queued.png")["detail-type"] == "Image Needs Review"
    cloudformation.delete_stack(StackName=name)
