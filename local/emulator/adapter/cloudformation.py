"""CloudFormation: create AWS::SageMaker::Model, EndpointConfig and Endpoint through SageMaker's API (sagemaker_api.py).

https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/AWS_SageMaker.html

Endpoint scaling, model package groups, composite alarms and saved queries, of CloudWatch Logs and Athena, are only
recorded: they have no effect. Alarms on several metrics are described, but not evaluated.
"""

import uuid
from collections.abc import Callable
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import WaiterError
from ministack.core.responses import get_region
from ministack.services.cloudformation import provisioners, stacks

from local.emulator.adapter import override

Result = tuple[str, dict[str, Any]]  # a resource's physical ID and its attributes


def sagemaker() -> BaseClient:
    # A template's numbers can be strings, which CloudFormation accepts and botocore's validation rejects.
    config = Config(parameter_validation=False)
    return botocore.session.get_session().create_client("sagemaker", region_name=get_region(), config=config)


def call(operation: str, properties: dict[str, Any]) -> dict[str, Any]:
    """Call an API operation with those properties that are among its parameters."""
    client = sagemaker()
    members = client.meta.service_model.operation_model(operation).input_shape.members
    return getattr(client, xform_name(operation))(**{key: properties[key] for key in members if key in properties})


def handlers(kind: str) -> dict[str, Any]:
    """The handlers of a resource type that is always replaced under a new name; the engine then deletes the old one."""
    name_property = f"{kind}Name"

    def create(logical_id: str, properties: dict[str, Any], _stack_name: str) -> Result:
        name = properties.get(name_property) or f"{logical_id[:50]}-{uuid.uuid4().hex[:12]}"
        response = call(f"Create{kind}", properties | {name_property: name})
        return response[f"{kind}Arn"], {name_property: name}

    def update(_arn: str, _old: Any, properties: dict[str, Any], stack_name: str, logical_id: str) -> Result:
        return create(logical_id, properties, stack_name)

    def delete(arn: str, _properties: Any) -> None:
        call(f"Delete{kind}", {name_property: arn.split("/")[-1]})

    return {"create": create, "update": update, "update_with_logical_id": True, "delete": delete}


def create_endpoint(logical_id: str, properties: dict[str, Any], stack_name: str) -> Result:
    arn, attributes = ENDPOINT["create"](logical_id, properties, stack_name)
    try:
        wait_for(attributes["EndpointName"])
    except ValueError:
        ENDPOINT["delete"](arn, properties)  # the rollback cannot: the resource has no physical ID yet
        raise
    return arn, attributes


def update_endpoint(
    arn: str, old: dict[str, Any], properties: dict[str, Any], stack_name: str, logical_id: str
) -> Result:
    name = arn.split("/")[-1]
    if properties.get("EndpointName") != old.get("EndpointName"):
        return create_endpoint(logical_id, properties, stack_name)
    call("UpdateEndpoint", properties | {"EndpointName": name})
    wait_for(name)
    return arn, {"EndpointName": name}


def wait_for(name: str) -> None:
    """Wait until the endpoint is InService; the ValueError of a failure becomes the resource's status reason."""
    options = {"Delay": 0.5, "MaxAttempts": 240}
    try:
        sagemaker().get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=options)
    except WaiterError as error:
        raise ValueError(error.last_response.get("FailureReason", error)) from None


def recorded(logical_id: str, _properties: Any, stack_name: str) -> Result:
    return f"{stack_name}-{logical_id}", {}


RECORDED: dict[str, Callable[..., Any]] = {
    "create": recorded,
    "update": lambda physical_id, *_: (physical_id, {}),
    "delete": lambda _physical_id, _properties: None,
}
ENDPOINT = handlers("Endpoint")
OF_ONE_METRIC = ("MetricName", "Namespace", "Dimensions", "Statistic", "ExtendedStatistic", "Period", "Unit")


@override(provisioners, "_cw_metric_alarm_record")
def alarm_record(original: Callable[..., dict[str, Any]], name: str, properties: dict[str, Any]) -> dict[str, Any]:
    """DescribeAlarms' description; ministack refuses Metrics, and evaluates no alarm that has no MetricName."""
    if "Metrics" not in properties:
        return original(name, properties)
    one = properties | {"Metrics": None, "MetricName": "-", "Namespace": "-"}
    described = {key: value for key, value in original(name, one).items() if key not in OF_ONE_METRIC}
    return described | {"Metrics": properties["Metrics"]}


provisioners._RESOURCE_HANDLERS |= {  # private: the table of resource types
    "AWS::SageMaker::Model": handlers("Model"),
    "AWS::SageMaker::EndpointConfig": handlers("EndpointConfig"),
    "AWS::SageMaker::Endpoint": ENDPOINT | {"create": create_endpoint, "update": update_endpoint},
    "AWS::SageMaker::ModelPackageGroup": RECORDED,
    "AWS::ApplicationAutoScaling::ScalableTarget": RECORDED,
    "AWS::ApplicationAutoScaling::ScalingPolicy": RECORDED,
    "AWS::CloudWatch::CompositeAlarm": RECORDED,
    "AWS::Logs::QueryDefinition": RECORDED,
    "AWS::Athena::NamedQuery": RECORDED,
}


@override(stacks, "_runs_on_worker_thread")
def runs_on_worker_thread(original: Callable[[str], bool], resource_type: str) -> bool:
    """Create endpoints on a thread: each waits for sagemaker_api.py to fetch the model from this process's S3."""
    return resource_type == "AWS::SageMaker::Endpoint" or original(resource_type)
