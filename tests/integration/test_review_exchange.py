"""make review-export, review-import and review-drain, and prepare.py reviewed, on the stack as on AWS."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image

from local.command import ROOT
from review import exchange
from workflow import DIGITS, wait_for

PYTHON = [sys.executable, "-m"]


def digit(label, number=0, part="test"):
    return sorted((DIGITS / part / label).iterdir())[number]


class Reviews:
    """Pending reviews of one test, under a prefix of its own, and the commands."""

    def __init__(self, workflow, stack_name, folder):
        self.workflow, self.stack_name, self.folder = workflow, stack_name, folder
        self.prefix = f"exchange/{uuid.uuid4()}/"
        self.table = workflow.reviews
        self.added = []
        self.credentials = {}

    def run(self, *command, status=0):
        """A command with variables that point at the local stack or, in tests/aws, at AWS; its output."""
        environment = getattr(self.workflow.stack, "aws_variables", dict(os.environ)) | self.credentials
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def make(self, name, *arguments, status=0):
        return self.run(*PYTHON, f"local.{name}", *arguments, "--stack", self.stack_name, status=status)

    def message(self, key, data, **more):
        """Upload, and a message of the old review queue about it."""
        version = self.workflow.s3.put_object(Bucket=self.workflow.bucket, Key=key, Body=data)["VersionId"]
        rows = [{"label": str(number), "probability": 0.1} for number in range(10)]
        result = {"s3_bucket": self.workflow.bucket, "s3_key": key, "s3_version_id": version, "label": "0"}
        result |= {"confidence": 0.1, "threshold": 0.75, "predictions": rows, "accepted": False}
        return result | {"endpoint": {"name": "endpoint", "variant": "model"}, "execution_arn": "arn:x"} | more

    def add(self, **images):
        """Upload images under these names, and put them up for review; the reviews by name."""
        path = self.folder / f"{uuid.uuid4()}.jsonl"
        messages = {name: self.message(f"{self.prefix}{name}.png", data) for name, data in images.items()}
        path.write_text("".join(json.dumps(message) + "\n" for message in messages.values()))
        self.make("review_import", "--format=queue", f"--file={path}")
        found = {
            name: self.table.get(f"s3://{self.workflow.bucket}/{message['s3_key']}", message["s3_version_id"])
            for name, message in messages.items()
        }
        self.added += found.values()
        return found

    def now(self, review):
        return self.table.get(review.image, review.version)

    def clean_up(self):
        for review in self.added:
            self.table.client.delete_item(TableName=self.table.name, Key=review.key)


@pytest.fixture(scope="module")
def stack_name():
    return "image-classification"


@pytest.fixture
def reviews(workflow, stack_name, tmp_path):
    reviews = Reviews(workflow, stack_name, tmp_path)
    yield reviews
    reviews.clean_up()


def read(path):
    return json.loads(path.read_text())


def decision_of(review):
    return review.decision, review.reviewed_label, review.reviewer


def test_decisions_of_label_studio_are_imported_once_and_overwrite_nothing(reviews, seven, tmp_path):
    added = reviews.add(a=seven, b=seven, c=seven, replaced=seven, gone=seven)
    reviews.workflow.s3.put_object(Bucket=reviews.workflow.bucket, Key=added["replaced"].s3_key, Body=b"other")
    reviews.workflow.s3.delete_object(Bucket=reviews.workflow.bucket, Key=added["gone"].s3_key)
    said = reviews.make("review_export", "--format=labelstudio", f"--output={tmp_path}/tasks.json")
    assert f"{added['gone'].image} (version {added['gone'].version}): it was deleted" in said
    assert "another image has replaced it: URLS=presigned shows the one that was classified" in said
    assert '<Choice value="7" hotkey="7"/>' in (tmp_path / "tasks.xml").read_text()
    tasks = {task["data"]["s3_uri"]: task for task in read(tmp_path / "tasks.json")}
    tasks = {name: tasks[added[name].image] for name in "abc"}
    assert tasks["a"]["data"]["image"] == added["a"].image

    def choose(name, label):
        by = {"completed_by": {"id": 1, "email": "ada@example.com"}}
        return tasks[name] | {"annotations": [{"result": [exchange.choice(label)]} | by]}

    stranger = choose("a", "7") | {"data": tasks["a"]["data"] | {"version": "none"}}
    exported = [choose("a", "7"), choose("b", "(not usable)"), choose("c", "nine"), stranger]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(exported))
    importing = ["review_import", "--format=labelstudio", f"--file={path}"]
    said = reviews.make(*importing, status=1)
    assert "2 decided" in said and "'nine' (once): known are 0, 1, 2" in said and "Not in the review table (1)" in said
    assert decision_of(reviews.now(added["a"])) == ("label", "7", "ada@example.com")
    assert decision_of(reviews.now(added["b"])) == ("not_usable", None, "ada@example.com")
    assert reviews.now(added["c"]).status == "pending"
    before = reviews.now(added["a"])
    path.write_text(json.dumps([choose("a", "7"), choose("b", "1")]))
    said = reviews.make(*importing, status=1)
    assert "1 unchanged" in said
    assert f"{added['b'].image} (version {added['b'].version}): ada@example.com: not usable; the file says 1" in said
    assert reviews.now(added["a"]) == before and reviews.now(added["b"]).decision == "not_usable"


def test_a_presigned_url_shows_the_version_that_was_classified(reviews, seven, tmp_path):
    added = reviews.add(a=seven, gone=seven)
    s3, bucket = reviews.workflow.s3, reviews.workflow.bucket
    s3.put_object(Bucket=bucket, Key=added["a"].s3_key, Body=b"other")
    s3.delete_object(Bucket=bucket, Key=added["gone"].s3_key, VersionId=added["gone"].version)
    arguments = ["--format=labelstudio", f"--output={tmp_path}/tasks.json", "--urls=presigned"]
    said = reviews.make("review_export", *arguments)
    assert f"{added['gone'].image} (version {added['gone'].version}): it was deleted" in said
    tasks = {task["data"]["s3_uri"]: task for task in read(tmp_path / "tasks.json")}
    assert added["gone"].image not in tasks
    with urllib.request.urlopen(tasks[added["a"].image]["data"]["image"]) as response:
        assert response.read() == seven


def test_decisions_in_a_csv_are_imported(reviews, seven, tmp_path):
    added = reviews.add(a=seven, b=seven, c=seven)
    reviews.table.decide(added["c"], "grace", "none_of_these")
    path = tmp_path / "reviews.csv"
    reviews.make("review_export", "--format=csv", f"--output={path}", "--status=all")
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["s3_key"].startswith(reviews.prefix)]
    by_name = {row["s3_key"].removeprefix(reviews.prefix)[0]: row for row in rows}
    assert (by_name["c"]["decision"], by_name["c"]["reviewer"], by_name["a"]["status"]) == (
        "none_of_these", "grace", "pending",
    )  # fmt: skip
    by_name["a"]["reviewed_label"] = "7"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, exchange.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    importing = ["review_import", "--format=csv", f"--file={path}"]
    assert "Who decided? FILE does not say" in reviews.make(*importing, status=1)
    assert reviews.now(added["a"]).status == "pending"
    said = reviews.make(*importing, "--reviewer=ada")
    assert "1 decided, 1 unchanged" in said
    assert decision_of(reviews.now(added["a"])) == ("label", "7", "ada")
    assert decision_of(reviews.now(added["b"])) == (None, None, None)
    assert "2 unchanged" in reviews.make(*importing, "--reviewer=ada")


def test_an_image_that_somebody_is_looking_at_is_left_to_them(reviews, seven, tmp_path):
    added = reviews.add(a=seven)["a"]
    reviews.table.claim(added, "grace", "a page")
    path = tmp_path / "r.csv"
    path.write_text(
        f"s3_bucket,s3_key,version,decision,reviewed_label\n{added.s3_bucket},{added.s3_key},{added.version},label,7\n"
    )
    said = reviews.make("review_import", "--format=csv", f"--file={path}", "--reviewer=ada", status=1)
    assert "Somebody is looking at it, try again (1)" in said and "grace is looking at" in said
    assert reviews.now(added).decision is None


def test_images_that_are_moved_into_folders_are_decided(reviews, seven, tmp_path):
    one = digit("1").read_bytes()
    added = reviews.add(seven=seven, one=one, waits=seven)
    reviews.workflow.s3.put_object(Bucket=reviews.workflow.bucket, Key=added["seven"].s3_key, Body=b"replaced since")
    folder = tmp_path / "images"
    reviews.make("review_export", "--format=folders", f"--output={folder}")
    paths = {name: folder / "_pending/0" / exchange.file_name(review) for name, review in added.items()}
    assert (paths["seven"].read_bytes(), paths["one"].read_bytes()) == (seven, one)
    assert {path.name for path in folder.iterdir()} >= {"_pending", "_none_of_these", "_not_usable", "0", "7"}
    paths["seven"].rename(folder / "7" / paths["seven"].name)
    shutil.copy(paths["one"], folder / "_not_usable")
    importing = ["review_import", "--format=folders", f"--file={folder}", "--reviewer=ada"]
    assert "2 decided" in reviews.make(*importing)
    assert decision_of(reviews.now(added["seven"])) == ("label", "7", "ada")
    assert decision_of(reviews.now(added["one"])) == ("not_usable", None, "ada")
    assert reviews.now(added["waits"]).status == "pending"
    assert "2 unchanged" in reviews.make(*importing)
    assert "exists already" in reviews.make("review_export", "--format=folders", f"--output={folder}", status=1)


@pytest.fixture
def reviewer(workflow):
    """Credentials of a user who has the stack's policy for reviewers and nothing else."""
    iam, name = workflow.stack.client("iam"), f"reviewer-{uuid.uuid4().hex[:8]}"
    iam.create_user(UserName=name)
    iam.attach_user_policy(UserName=name, PolicyArn=workflow.outputs["ReviewerPolicyArn"])
    key = iam.create_access_key(UserName=name)["AccessKey"]
    yield {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    iam.delete_access_key(UserName=name, AccessKeyId=key["AccessKeyId"])
    iam.detach_user_policy(UserName=name, PolicyArn=workflow.outputs["ReviewerPolicyArn"])
    iam.delete_user(UserName=name)


def test_the_reviewers_policy_is_enough(reviews, reviewer, seven, tmp_path):
    added = reviews.add(a=seven)["a"]
    reviews.credentials = reviewer
    for name, output in (("csv", "r.csv"), ("folders", "images"), ("labelstudio", "tasks.json")):
        reviews.make("review_export", f"--format={name}", f"--output={tmp_path}/{output}")
    pending = tmp_path / "images/_pending/0" / exchange.file_name(added)
    pending.rename(tmp_path / "images/7" / pending.name)
    importing = ["review_import", "--format=folders", f"--file={tmp_path}/images", "--reviewer=ada"]
    assert "1 decided" in reviews.make(*importing)
    prepare(reviews, "--output", tmp_path / "data")
    line = json.dumps(reviews.message("x", seven))
    (tmp_path / "m.jsonl").write_text(line)
    said = reviews.make("review_import", "--format=queue", f"--file={tmp_path}/m.jsonl", status=1)
    assert "AccessDenied" in said  # so the policy is what allowed the rest


OLD_STACK = {
    "Resources": {
        "Topic": {"Type": "AWS::SNS::Topic"},
        "ReviewDeadLetterQueue": {"Type": "AWS::SQS::Queue"},
        "ReviewQueue": {
            "Type": "AWS::SQS::Queue",
            "Properties": {
                "RedrivePolicy": {
                    "deadLetterTargetArn": {"Fn::GetAtt": ["ReviewDeadLetterQueue", "Arn"]},
                    "maxReceiveCount": 5,
                }
            },
        },
    },
    "Outputs": {
        "ClassifyImageStateMachineArn": {"Value": "arn:aws:states:us-east-1:000000000000:stateMachine:x"},
        "ReviewQueueUrl": {"Value": {"Ref": "ReviewQueue"}},
    },
}
UPDATED_STACK = {"Resources": {"Topic": OLD_STACK["Resources"]["Topic"]}}


def test_the_old_review_queue_is_drained_while_its_stack_is_updated_and_imported(reviews, seven, tmp_path):
    workflow, file = reviews.workflow, tmp_path / "messages.jsonl"
    sqs, formation = workflow.sqs, workflow.stack.client("cloudformation")
    name, prefix = f"old-{uuid.uuid4().hex[:8]}", reviews.prefix
    formation.create_stack(StackName=name, TemplateBody=json.dumps(OLD_STACK))
    formation.get_waiter("stack_create_complete").wait(StackName=name, WaiterConfig={"Delay": 1})
    resources = formation.describe_stack_resources(StackName=name)["StackResources"]
    queues = {row["LogicalResourceId"]: row["PhysicalResourceId"] for row in resources}

    def send(message, queue="ReviewQueue"):
        body = message if isinstance(message, str) else json.dumps(message)
        sqs.send_message(QueueUrl=queues[queue], MessageBody=body)

    def lines():
        return file.read_text().splitlines() if file.exists() else []

    unversioned = reviews.message(f"{prefix}unversioned.png", seven)
    version = unversioned.pop("s3_version_id")
    replaced = reviews.message(f"{prefix}replaced.png", seven)
    del replaced["s3_version_id"]
    gone = unversioned | {"s3_key": f"{prefix}gone.png"}
    first = reviews.message(f"{prefix}first.png", seven)
    for message in (first, first, unversioned, replaced, gone, "no message"):
        send(message)
    send(dead := reviews.message(f"{prefix}dead.png", seven), "ReviewDeadLetterQueue")
    command = [*PYTHON, "local.review_drain", "--file", str(file), "--stack", name]
    log = (tmp_path / "log").open("w")
    drain = subprocess.Popen(command, cwd=ROOT, env=workflow.stack.aws_variables, stdout=log, stderr=log)
    try:
        wait_for(lambda: len(lines()) == 7)
        send(late := reviews.message(f"{prefix}late.png", seven))
        wait_for(lambda: len(lines()) == 8)
        formation.update_stack(StackName=name, TemplateBody=json.dumps(UPDATED_STACK))
        assert drain.wait(60) == 0, (tmp_path / "log").read_text()
    finally:
        drain.kill()
        formation.delete_stack(StackName=name)
    assert "8 messages saved" in (tmp_path / "log").read_text()

    sent = [json.loads(line)["sent_at"] for line in lines() if "sent_at" in line]
    second = timedelta(seconds=1)  # S3's times have no fractions of it
    wait_for(lambda: datetime.now(UTC) > datetime.fromisoformat(max(sent)) + second)
    workflow.s3.put_object(Bucket=workflow.bucket, Key=replaced["s3_key"], Body=b"other")
    said = reviews.make("review_import", "--format=queue", f"--file={file}", status=1)
    assert "4 added, 1 unchanged" in said
    assert "gone.png: it was deleted" in said and "replaced.png: another image has replaced it" in said
    assert "it is not a message of the review queue" in said
    messages = (unversioned | {"s3_version_id": version}, first, dead, late)
    images = [(f"s3://{workflow.bucket}/{each['s3_key']}", each["s3_version_id"]) for each in messages]
    added = [reviews.table.get(*image) for image in images]
    reviews.added += added
    assert {(each.status, each.reason, each.selection_probability, each.revision) for each in added} == {
        ("pending", "low_confidence", 1, 0)
    }
    assert {each.created_at for each in added} <= set(sent)
    decided = reviews.table.decide(added[1], "ada", "label", "7")
    assert "5 unchanged" in reviews.make("review_import", "--format=queue", f"--file={file}", status=1)
    assert reviews.now(decided) == decided


def prepare(reviews, *arguments, status=0):
    return reviews.run(sys.executable, "training/prepare.py", "reviewed", *map(str, arguments), status=status)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def original(tmp_path):
    """A prepared folder of a few digits."""
    folder = tmp_path / "original"
    for part, numbers in (("train", (2, 3)), ("validation", (4,)), ("test", (5, 6))):
        for label in ("1", "7"):
            (folder / part / label).mkdir(parents=True)
            for number in numbers:
                shutil.copy(digit(label, number), folder / part / label)
    return folder


def test_decisions_become_training_data_and_their_manifest_makes_it_again(reviews, original, tmp_path):
    copied = tmp_path / "copy.bmp"
    Image.open(digit("7", 5)).convert("RGB").save(copied)
    added = reviews.add(
        new=digit("7", 9).read_bytes(),
        replaced=digit("1").read_bytes(),
        trained=digit("7", 2).read_bytes(),
        tested=digit("1", 6).read_bytes(),
        copied=copied.read_bytes(),
        gone=digit("1", 7).read_bytes(),
        again=digit("7", 9).read_bytes(),
        unusable=digit("1", 8).read_bytes(),
    )
    for name, review in added.items():
        label = "7" if name in ("new", "again", "trained", "copied") else "1"
        reviews.table.decide(review, "ada", *(("label", label) if name != "unusable" else ("not_usable",)))
    s3, bucket = reviews.workflow.s3, reviews.workflow.bucket
    s3.put_object(Bucket=bucket, Key=added["replaced"].s3_key, Body=b"other")
    s3.delete_object(Bucket=bucket, Key=added["gone"].s3_key, VersionId=added["gone"].version)

    said = prepare(reviews, "--add", original, "--output", tmp_path / "more")
    about = {name: f"{review.image} (version {review.version}): " for name, review in added.items()}
    assert f"Full list: {tmp_path / 'more/left-out.txt'}\n" in said
    listed = (tmp_path / "more/left-out.txt").read_text()
    assert about["gone"] + "it was deleted" in listed
    assert about["trained"] + "is in the training data already" in listed
    assert about["tested"] + f"same as {original / 'test/1' / digit('1', 6).name}" in listed
    assert about["copied"] + f"like {original / 'test/7' / digit('7', 5).name}" in listed
    # The images are in the order of their keys.
    assert about["new"] + f"is there already, as {about['again'].removesuffix(': ')}" in listed
    assert "unusable" not in listed
    said_of_all = re.search(r"Added: (\d+)\. Left out: (\d+) \((.*)\)\n", said)
    assert "no longer in S3" in said_of_all[3] and "like a validation or test image" in said_of_all[3]
    assert int(said_of_all[1]) == len((tmp_path / "more/manifest.jsonl").read_text().splitlines())
    manifest = [json.loads(line) for line in (tmp_path / "more/manifest.jsonl").read_text().splitlines()]
    ours = {entry["image"]: entry for entry in manifest if reviews.prefix in entry["image"]}
    assert set(ours) == {added["again"].image, added["replaced"].image}
    entry = ours[added["replaced"].image]
    now = reviews.now(added["replaced"])
    assert entry == {
        "file": f"train/1/{entry['sha256'][:16]}.png",
        "image": now.image,
        "version": now.version,
        "s3_version_id": now.version,
        "reviewer": "ada",
        "created_at": now.created_at,
        "reviewed_at": now.reviewed_at,
        "reason": "low_confidence",
        "label": "1",
        "selection_probability": 1,
        "weight": 1,
        "sha256": entry["sha256"],
    }
    made = files(tmp_path / "more")
    assert made[entry["file"]] == digit("1").read_bytes()
    assert {name for name in made if name.startswith(("test/", "validation/"))} == {
        name for name in files(original) if name.startswith(("test/", "validation/"))
    }

    prepare(reviews, "--add", original, "--output", tmp_path / "more")
    assert {"manifest.jsonl", *(each["file"] for each in ours.values())} <= set(files(tmp_path / "more"))

    mine = tmp_path / "mine.jsonl"
    mine.write_text("".join(json.dumps(entry) + "\n" for entry in ours.values()))
    prepare(reviews, "--manifest", mine, "--output", tmp_path / "again")
    again = files(tmp_path / "again")
    assert again.pop("manifest.jsonl") == mine.read_bytes()
    assert again == {entry["file"]: made[entry["file"]] for entry in ours.values()}

    mine.write_text(json.dumps(entry | {"sha256": "0" * 64}) + "\n")
    said = prepare(reviews, "--manifest", mine, "--output", tmp_path / "again", status=1)
    assert said.startswith(f"ImageChangedError: {now.image} (version {now.version}) has other bytes")
    s3.delete_object(Bucket=bucket, Key=now.s3_key, VersionId=now.version)
    mine.write_text(json.dumps(entry) + "\n")
    said = prepare(reviews, "--manifest", mine, "--output", tmp_path / "again", status=1)
    assert said.startswith("ImageGoneError: 1 of 1 images are gone")
    assert set(files(tmp_path / "again")) == {*again, "manifest.jsonl"}  # what was there is still there


def test_an_audited_image_keeps_its_weight(reviews, workflow, tmp_path):
    execution = workflow.classify(f"{reviews.prefix}audit.png", digit("7", 9).read_bytes(), audited=True)
    review = workflow.review_of(execution)
    reviews.added.append(review)
    workflow.reviews.decide(review, "ada", "label", "7")
    prepare(reviews, "--output", tmp_path / "data")
    manifest = [json.loads(line) for line in (tmp_path / "data/manifest.jsonl").read_text().splitlines()]
    (entry,) = [entry for entry in manifest if entry["image"] == review.image]
    assert (entry["reason"], entry["selection_probability"], entry["weight"]) == ("audit", 0.02, 50)


def test_a_stack_that_is_not_there_is_named(reviews, tmp_path):
    said = prepare(reviews, "--stack", "none", "--output", tmp_path / "data", status=1)
    assert said == "StackNotFoundError: there is no stack none in this account and region\n"
