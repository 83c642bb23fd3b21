"""Errors of a training job on SageMaker; each message says what to do."""

from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError
from sagemaker.core.helper.iam_role_resolver import RoleValidationError

CREDENTIAL_ERRORS = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}


class LaunchError(Exception):
    """The job could not be started, or it failed; the message says what to do."""


class InvalidOptionError(LaunchError):
    pass


class UnknownHyperparameterError(LaunchError):
    pass


class DataFolderError(LaunchError):
    pass


class CredentialsError(LaunchError):
    pass


class BucketError(LaunchError):
    pass


class RoleError(LaunchError):
    pass


class QuotaError(LaunchError):
    pass


class AwsError(LaunchError):
    pass


class TrainingFailedError(LaunchError):
    pass


class ModelArchiveError(LaunchError):
    pass


def explain(error: Exception, instance_type: str) -> LaunchError:
    """Convert an exception of boto3 or SageMaker's SDK into a LaunchError."""
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return CredentialsError("no AWS credentials: run `aws configure` or `aws sso login`, or set AWS_PROFILE")
    if isinstance(error, RoleValidationError):
        return RoleError(" ".join(str(error).partition("\n\n")[0].split()))
    if not isinstance(error, ClientError):
        return AwsError(str(error))
    code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
    if code == "ResourceLimitExceeded":
        return QuotaError(
            f"your account's quota allows no more {instance_type} for training: request an increase at Service Quotas, "
            "or choose another --instance-type (new accounts have CPU types and usually no GPUs). "
            f"AWS's message: {message}"
        )
    if code in CREDENTIAL_ERRORS:
        return CredentialsError(f"AWS rejected these credentials, renew them: {error.operation_name}: {message}")
    return AwsError(f"{error.operation_name}: {code}: {message}")
