"""What the lean client raises: the shapes of botocore's errors, without its import."""

from __future__ import annotations

from typing import Any


class ServiceError(Exception):
    """The service answered with an error.

    Attributes:
        response: As of botocore's `ClientError`: `Error`, `ResponseMetadata`, and what else the service told.
        operation_name: Such as `PutItem`.
    """

    def __init__(self, response: dict[str, Any], operation_name: str) -> None:
        error = response.get("Error", {})
        super().__init__(
            f"An error occurred ({error.get('Code', 'Unknown')}) when calling the {operation_name} operation: "
            f"{error.get('Message', 'Unknown')}"
        )
        self.response = response
        self.operation_name = operation_name

    def __reduce__(self) -> tuple[type[ServiceError], tuple[dict[str, Any], str]]:
        return type(self), (self.response, self.operation_name)


class NotSentError(Exception):
    """No connection came about: nothing was sent."""


class CredentialsError(NotSentError):
    """The source of the credentials failed, for the reason that is this error's cause: nothing was sent.

    Its text shows nothing that the source says, because that may be a part of a secret.
    """


class LostAnswerError(Exception):
    """The request was sent, or part of it, and no whole answer came back: whether it was applied is not known."""
