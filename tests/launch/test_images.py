"""The container images in template.yaml, compared with those in SageMaker's SDK."""

from sagemaker.core import image_uris
from sagemaker.core.image_uris import config_for_framework

from documents import TEMPLATE

VERSION = "1.9-0"


def test_the_registries_of_the_scikit_learn_image_are_those_of_the_sdk():
    registries = config_for_framework("sklearn")["inference"]["versions"][VERSION]["registries"]
    mapped = {region: row["Account"] for region, row in TEMPLATE["Mappings"]["ScikitLearnRegistry"].items()}
    assert {region: account for region, account in mapped.items() if account != "none"} == registries


def test_the_template_and_the_sdk_name_the_same_image():
    uri = image_uris.retrieve("sklearn", "eu-central-1", version=VERSION, instance_type="ml.c6i.large")
    account = TEMPLATE["Mappings"]["ScikitLearnRegistry"]["eu-central-1"]["Account"]
    image = TEMPLATE["Resources"]["Model"]["Properties"]["PrimaryContainer"]["Image"]["Fn::If"][2]["Fn::Sub"][0]
    values = {"${Account}": account, "${AWS::Region}": "eu-central-1", "${AWS::URLSuffix}": "amazonaws.com"}
    for name, value in values.items():
        image = image.replace(name, value)
    assert image == uri
