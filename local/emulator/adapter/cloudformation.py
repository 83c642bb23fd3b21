"""CloudFormation: AWS::SageMaker::Model, EndpointConfig and Endpoint, made through SageMaker's API (sagemaker_api.py).

https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/AWS_SageMaker.html

Scaling of endpoints, composite alarms, alarms on several metrics and saved queries are recorded, and not acted on.
"""

import uuid

import botocore.session
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import WaiterError
from ministack.core.responses import get_region
from ministack.services.cloudformation import provisioners, stacks

from local.emulator.adapter import replaces


def sagemaker():
    # A template's numbers may be strings, which CloudFormation takes and botocore's validation does not.
    config = Config(parameter_validation=False)
    return botocore.session.get_session().create_client("sagemaker", region_name=get_region(), config=config)


def call(operation, properties):
    """Call an operation of the API with those of the properties that it takes."""
    client = sagemaker()
    members = client.meta.service_model.operation_model(operation).input_shape.members
    return getattr(client, xform_name(operation))(**{key: properties[key] for key in members if key in properties})


def handlers(kind):
    """A resource whose every change is a replacement under a new name; the engine then deletes the old one."""
    name_property = f"{kind}Name"

    def create(logical_id, properties, _stack_name):
        name = properties.get(name_property) or f"{logical_id[:50]}-{uuid.uuid4().hex[:12]}"
        answer = call(f"Create{kind}", properties | {name_property: name})
        return answer[f"{kind}Arn"], {name_property: name}

    def update(_arn, _old, properties, stack_name, logical_id):
        return create(logical_id, properties, stack_name)

    def delete(arn, _properties):
        call(f"Delete{kind}", {name_property: arn.split("/")[-1]})

    return {"create": create, "update": update, "update_with_logical_id": True, "delete": delete}


def create_endpoint(logical_id, properties, stack_name):
    arn, attributes = ENDPOINT["create"](logical_id, properties, stack_name)
    try:
        wait_for(attributes["EndpointName"])
    except ValueError:
        ENDPOINT["delete"](arn, properties)  # the stack's rollback cannot: it has no physical id yet
        raise
    return arn, attributes


def update_endpoint(arn, old, properties, stack_name, logical_id):
    name = arn.split("/")[-1]
    if properties.get("EndpointName") != old.get("EndpointName"):
        return create_endpoint(logical_id, properties, stack_name)
    call("UpdateEndpoint", properties | {"EndpointName": name})
    wait_for(name)
    return arn, {"EndpointName": name}


def wait_for(name):
    """Wait for InService; what went wrong becomes the resource's status reason."""
    options = {"Delay": 0.5, "MaxAttempts": 240}
    try:
        sagemaker().get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=options)
    except WaiterError as error:
        raise ValueError(error.last_response.get("FailureReason", error)) from None


def recorded(logical_id, _properties, stack_name):
    return f"{stack_name}-{logical_id}", {}


RECORDED = {
    "create": recorded,
    "update": lambda physical_id, *_: (physical_id, {}),
    "delete": lambda _physical_id, _properties: None,
}
ENDPOINT = handlers("Endpoint")
ALARM = provisioners._RESOURCE_HANDLERS["AWS::CloudWatch::Alarm"]


def create_alarm(logical_id, properties, stack_name):
    return (recorded if "Metrics" in properties else ALARM["create"])(logical_id, properties, stack_name)


def update_alarm(physical_id, old, properties, stack_name, *more):
    update = RECORDED["update"] if "Metrics" in properties else ALARM["update"]
    return update(physical_id, old, properties, stack_name, *more)


provisioners._RESOURCE_HANDLERS |= {  # private: the table of resource types
    "AWS::SageMaker::Model": handlers("Model"),
    "AWS::SageMaker::EndpointConfig": handlers("EndpointConfig"),
    "AWS::SageMaker::Endpoint": ENDPOINT | {"create": create_endpoint, "update": update_endpoint},
    "AWS::ApplicationAutoScaling::ScalableTarget": RECORDED,
    "AWS::ApplicationAutoScaling::ScalingPolicy": RECORDED,
    "AWS::CloudWatch::CompositeAlarm": RECORDED,
    "AWS::Logs::QueryDefinition": RECORDED,
    "AWS::CloudWatch::Alarm": ALARM | {"create": create_alarm, "update": update_alarm},
}


@replaces(stacks, "_runs_on_worker_thread")
def runs_on_worker_thread(stock, resource_type):
    """An endpoint takes its time, and fetches its model from the S3 that this very process serves."""
    return resource_type == "AWS::SageMaker::Endpoint" or stock(resource_type)
