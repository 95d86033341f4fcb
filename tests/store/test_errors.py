"""What Redis says, in our words."""

import ssl

import pytest
import redis.asyncio
import redis.exceptions
from redis._parsers.base import BaseParser
from redis.asyncio.client import Pipeline

from broker.errors import RedisRefuses, RedisUnavailable, WrongType
from broker.store.errors import translated

REFUSING = {
    "NOPERM User u has no permissions to run the 'xadd' command": "the command XADD",
    "NOPERM this user has no permissions to run the 'xadd' command": "the command XADD",
    "NOPERM No permissions to access a channel": "a channel",
    "NOPERM this user has no permissions to access one of the channels used as arguments": "a channel",
    "NOPERM No permissions to access a key": "a key",
    "ERR ACL failure in script: User v has no permissions to run the 'xadd' command script: on @user_script:1.": "XADD",
    "ERR ACL failure in script: No permissions to access a channel script: on @user_script:1.": "a channel",
    "ERR The user executing the script can't publish to the channel mentioned in the command": "a channel",
    "ERR The user executing the script can't access at least one of the keys mentioned": "a key",
    "ERR The user executing the script can't run this command or subcommand": "a command",
    "ERR unknown command 'XADD', with args beginning with: 'le:a' ": "the command XADD",
    "ERR Unknown Redis command called from script script: 7ae0187b, on @user_script:1.": "a command",
    "ERR Unknown command called from script script: on @user_script:1.": "a command",
    "ERR syntax error": "older release",
    "WRONGPASS invalid username-password pair or user is disabled.": "the user or the password",
    "NOAUTH Authentication required.": "wants a password",
    "ERR DB index is out of range": "number that LASTEVENT_REDIS_URL names",
    "DENIED Redis is running in protected mode because protected mode is enabled": "protected mode",
    "MOVED 3999 127.0.0.1:6381": "Redis Cluster",
    "CROSSSLOT Keys in request don't hash to the same slot": "Redis Cluster",
    "CLUSTERDOWN Hash slot not served": "Redis Cluster",
}
PASSING = {
    "LOADING Redis is loading the dataset in memory": "reading its data",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.": "busy with a script",
    "OOM command not allowed when used memory > 'maxmemory'.": "no memory left",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.": "its disk",
    "READONLY You can't write against a read only replica.": "a replica",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.": "without its primary",
    "NOREPLICAS Not enough good replicas to write.": "min-replicas-to-write",
    "ERR max number of clients reached": "maxclients",
}


@pytest.mark.parametrize("said", REFUSING)
def test_what_an_operator_must_change_is_named(said: str) -> None:
    meaning = translated(BaseParser.parse_error(said))
    assert type(meaning) is RedisRefuses
    assert REFUSING[said] in str(meaning)


@pytest.mark.parametrize("said", PASSING)
def test_what_passes_is_named(said: str) -> None:
    meaning = translated(BaseParser.parse_error(said))
    assert type(meaning) is RedisUnavailable
    assert PASSING[said] in str(meaning)


def test_a_key_of_another_type_is_no_outage() -> None:
    error = BaseParser.parse_error("WRONGTYPE Operation against a key holding the wrong kind of value")
    meaning = translated(error, key="le:leases")
    assert isinstance(meaning, WrongType)
    assert "The key le:leases" in str(meaning)


def test_what_redis_says_is_found_in_what_a_pipeline_makes_of_it() -> None:
    error = BaseParser.parse_error("MISCONF Redis is configured to save RDB snapshots")
    Pipeline(redis.asyncio.ConnectionPool(), {}, False, None).annotate_exception(error, 2, ("SET", "le:x", "OOM"))
    assert "its disk" in str(translated(error))


def test_a_certificate_that_is_not_accepted_is_named() -> None:
    refused = ssl.SSLCertVerificationError()
    refused.verify_message = "certificate has expired"
    error = redis.exceptions.ConnectionError("Error 1 connecting to localhost:6380.")
    error.__context__ = refused
    assert "certificate has expired" in str(translated(error))


def test_what_is_no_redis_is_named() -> None:
    answer = redis.exceptions.InvalidResponse('Protocol error, got "H" as reply type byte')
    assert "does not speak its protocol" in str(translated(answer))


def test_a_mistake_of_ours_is_no_state_of_redis() -> None:
    assert translated(BaseParser.parse_error("ERR wrong number of arguments for 'get' command")) is None
    assert translated(ValueError("x")) is None
