"""tools/trim.py: packages keep the descriptions of the services they call, and clients miss nothing of these."""

import shutil
from pathlib import Path

import botocore
import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import UnknownServiceError
from botocore.loaders import Loader
from botocore.session import Session
from urllib3 import HTTPResponse

from documents import ROOT
from tools.trim import TrimError, services, trim

DATA = Path(botocore.__file__).parent / "data"
USED = {"cloudwatch", "dynamodb", "events", "glue", "s3", "sagemaker", "sagemaker-runtime", "stepfunctions"}
SERVICES = (*USED, "sts", "xray", "sns", "apigateway")  # the last has members named documentation


@pytest.fixture
def package(tmp_path):
    """A package of the functions with the descriptions of a few services; add a module and trim it."""
    for path in (ROOT / "functions").glob("*.py"):
        shutil.copy(path, tmp_path)
    for name in SERVICES:
        shutil.copytree(DATA / name, tmp_path / "botocore/data" / name)
    for path in DATA.glob("*.json"):
        shutil.copy(path, tmp_path / "botocore/data")
    return tmp_path


def session(data):
    """A session that reads only these descriptions."""
    session = Session()
    loader = Loader(extra_search_paths=[str(data)], include_default_search_paths=False)
    session.register_component("data_loader", loader)
    return session


def kept(package):
    return {path.name for path in package.glob("botocore/data/*/")}


def test_the_functions_services_are_found_in_their_code():
    assert {name for path in (ROOT / "functions").glob("*.py") for name in services(path)} == USED


def test_other_services_are_removed(package):
    trim(package)
    assert kept(package) == {*USED, "sts", "xray"}
    with pytest.raises(UnknownServiceError, match="Unknown service: 'sns'"):
        session(package / "botocore/data").create_client("sns")


@pytest.mark.parametrize(
    "call",
    ["boto3.client('sns')", "boto3.resource(service_name='sns')", "client('sns')", "Session().create_client('sns')"],
)
def test_a_function_with_another_client_keeps_its_service(package, call):
    (package / "shared").mkdir()
    (package / "shared/queue.py").write_text(f"queue = {call}\n")
    trim(package)
    assert kept(package) == {*USED, "sts", "xray", "sns"}


def test_the_clients_of_a_library_do_not_count(package):
    (package / "library.py").write_text("boto3.client('sns')\n")
    (package / "library-1.0.dist-info").mkdir()
    (package / "library-1.0.dist-info/RECORD").write_text("library.py,sha256=0,20\n")
    trim(package)
    assert "sns" not in kept(package)


def test_a_service_that_is_no_literal_fails_and_names_the_line(package):
    (package / "queue.py").write_text("import boto3\n\nqueue = boto3.client(NAME)\n")
    with pytest.raises(TrimError, match=r"queue\.py:3: boto3\.client\(NAME\): .* name it in a literal"):
        trim(package)


def test_an_unknown_service_fails_by_name(package):
    (package / "queue.py").write_text("queue = boto3.client('snss')\n")
    with pytest.raises(TrimError, match="botocore has no service snss"):
        trim(package)


def test_a_trimmed_package_can_be_trimmed_again(package):
    trim(package)
    before = {path: path.read_bytes() for path in package.rglob("*.json")}
    trim(package)
    assert {path: path.read_bytes() for path in package.rglob("*.json")} == before


def shapes(session, service):
    """The types, members and requirements of a service's shapes."""
    model = session.get_service_model(service)
    return {
        name: (shape.type_name, sorted(getattr(shape, "members", {})), getattr(shape, "required_members", []))
        for name, shape in ((name, model.shape_for(name)) for name in model.shape_names)
    }


def test_the_remaining_descriptions_describe_the_same(package):
    (package / "other.py").write_text("boto3.client('apigateway')\nboto3.client('sns')\n")
    trim(package)
    trimmed, full = session(package / "botocore/data"), session(DATA)
    for service in SERVICES:
        assert shapes(trimmed, service) == shapes(full, service)
        assert trimmed.get_paginator_model(service)._paginator_config == (
            full.get_paginator_model(service)._paginator_config
        )


@pytest.mark.parametrize("service", ["s3", "sagemaker-runtime", "sts"])
def test_the_endpoints_of_every_region_stay_the_same(package, service):
    trim(package)
    trimmed, full = session(package / "botocore/data"), session(DATA)
    for partition in full.get_available_partitions():
        regions = full.get_available_regions(service, partition, allow_non_regional=True)
        assert trimmed.get_available_regions(service, partition, allow_non_regional=True) == regions
    for region in ("us-east-1", "eu-central-2", "cn-north-1", "us-gov-west-1"):
        urls = [each.create_client(service, region).meta.endpoint_url for each in (trimmed, full)]
        assert urls[0] == urls[1]


def test_a_call_sends_the_same_request(package):
    """A call reads more of a description than its shapes: S3's context parameters, for one."""
    trim(package)
    requests = []
    for each in (session(package / "botocore/data"), session(DATA)):
        s3 = each.create_client("s3", "us-east-1", aws_access_key_id="test", aws_secret_access_key="test")
        s3.meta.events.register("before-sign.s3.GetObject", lambda request, **_: requests.append(request))
        s3.meta.events.register("before-send.s3.GetObject", lambda **_: AWSResponse("", 200, {}, HTTPResponse()))
        s3.get_object(Bucket="bucket", Key="a b.png")
    assert len({(request.method, request.url) for request in requests}) == 1
    assert requests[0].url == "https://bucket.s3.amazonaws.com/a%20b.png"
