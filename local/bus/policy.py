"""What a subscription promises, read out of its protobuf once instead of on every delivery."""

from __future__ import annotations

from dataclasses import dataclass

from local.bus import filters
from local.bus.refusal import check_url, invalid
from local.bus.wire import Pb

# Documented defaults and limits of google.pubsub.v1 (reference: Subscription, RetryPolicy, DeadLetterPolicy).
_DEADLINES = range(10, 601)
_ATTEMPTS = range(5, 101)
_RETRY_MINIMUM, _RETRY_MAXIMUM, _RETRY_LIMIT = 10.0, 600.0, 600.0
_RETENTION, _RETENTION_SHORTEST, _RETENTION_LONGEST = 7 * 86400.0, 600.0, 31 * 86400.0
# A push endpoint without a retry policy is spared all the same ("push backoff": 100 ms to 60 s).
_PUSH_MINIMUM, _PUSH_MAXIMUM = 0.1, 60.0


@dataclass(frozen=True, slots=True)
class Policy:
    """Durations in seconds; `endpoint` is empty for a pull subscription, `dead_letter_topic` without a policy."""

    name: str
    topic: str
    ack_deadline: float
    retention: float
    retry_minimum: float
    retry_maximum: float
    endpoint: str
    audience: str
    service_account: str
    dead_letter_topic: str
    attempts: int
    filter: filters.Predicate

    def backoff(self, failures: int) -> float:
        """Seconds to wait after the nth failed delivery of a message: doubling from minimum to maximum."""
        return min(self.retry_maximum, self.retry_minimum * 2.0 ** min(failures - 1, 40))


def read(config: Pb) -> Policy:
    """The policy of a Subscription message, defaults applied; raises INVALID_ARGUMENT or UNIMPLEMENTED-worthy refusals.

    `config` is changed where the cloud writes defaults back into the resource.
    """
    _refuse_what_is_not_served(config)
    config.ack_deadline_seconds = config.ack_deadline_seconds or 10
    if config.ack_deadline_seconds not in _DEADLINES:
        raise invalid(f"Invalid ack deadline given (ack_deadline_secs={config.ack_deadline_seconds}): 10 to 600.")
    if not config.HasField("message_retention_duration"):
        config.message_retention_duration.seconds = int(_RETENTION)
    retention = _seconds(config.message_retention_duration)
    if not _RETENTION_SHORTEST <= retention <= _RETENTION_LONGEST:
        raise invalid("message_retention_duration must be between 10 minutes and 31 days.")
    minimum, maximum = _retry(config)
    dead_letter_topic, attempts = _dead_letter(config)
    push = config.push_config
    return Policy(
        name=config.name,
        topic=config.topic,
        ack_deadline=float(config.ack_deadline_seconds),
        retention=retention,
        retry_minimum=minimum,
        retry_maximum=maximum,
        endpoint=push.push_endpoint,
        audience=push.oidc_token.audience or push.push_endpoint,
        service_account=push.oidc_token.service_account_email,
        dead_letter_topic=dead_letter_topic,
        attempts=attempts,
        filter=filters.parse(config.filter),
    )


def _refuse_what_is_not_served(config: Pb) -> None:
    for field in ("bigquery_config", "cloud_storage_config"):
        if config.HasField(field):
            raise invalid(f"{field} is not served by the local bus.")
    if config.enable_exactly_once_delivery:
        raise invalid("Exactly-once delivery is not served by the local bus.")
    endpoint = config.push_config.push_endpoint
    if endpoint:
        check_url(endpoint)
    if config.push_config.HasField("no_wrapper"):
        raise invalid("Unwrapped push is not served by the local bus.")


def _retry(config: Pb) -> tuple[float, float]:
    if not config.HasField("retry_policy"):
        return (_PUSH_MINIMUM, _PUSH_MAXIMUM) if config.push_config.push_endpoint else (0.0, 0.0)
    policy = config.retry_policy
    minimum = _seconds(policy.minimum_backoff) if policy.HasField("minimum_backoff") else _RETRY_MINIMUM
    maximum = _seconds(policy.maximum_backoff) if policy.HasField("maximum_backoff") else _RETRY_MAXIMUM
    if not 0 <= minimum <= maximum <= _RETRY_LIMIT:
        raise invalid("Retry backoffs must satisfy 0 <= minimum <= maximum <= 600 seconds.")
    return minimum, maximum


def _dead_letter(config: Pb) -> tuple[str, int]:
    policy = config.dead_letter_policy
    if not config.HasField("dead_letter_policy") or not policy.dead_letter_topic:
        return "", 0
    policy.max_delivery_attempts = policy.max_delivery_attempts or 5
    if policy.max_delivery_attempts not in _ATTEMPTS:
        raise invalid("max_delivery_attempts must be between 5 and 100.")
    return policy.dead_letter_topic, policy.max_delivery_attempts


def _seconds(duration: Pb) -> float:
    return float(duration.seconds + duration.nanos / 1e9)
