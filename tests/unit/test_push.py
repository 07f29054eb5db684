"""Who may push: only the issuer's true, present, fitting tokens of the one account get in."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import SettingsError, TransientError
from shared.push import LEEWAY, REFETCH_SECONDS, KeySet, NotAuthenticated, NotAuthorised, PushVerifier
from shared.settings import Settings

ISSUER = "https://accounts.google.com"
BASE = "https://ingest-xyz.a.run.app"
PATH = "/sources/upstream"
ACCOUNT = "pusher@noesis.iam.gserviceaccount.com"
JWKS_URL = "https://issuer.example/jwks"


@lru_cache
def _key(name: str) -> rsa.RSAPrivateKey:
    """One RSA key a name, made once: making them is the slow part."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _jwk(name: str) -> dict[str, Any]:
    entry: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(_key(name).public_key(), as_dict=True)
    return entry | {"kid": name, "use": "sig", "alg": "RS256"}


def _claims(**changed: Any) -> dict[str, Any]:
    """The claims of a good token; None takes one away."""
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": BASE + PATH,
        "iat": now,
        "exp": now + 3600,
        "sub": "1",
        "email": ACCOUNT,
        "email_verified": True,
    } | changed
    return {name: value for name, value in claims.items() if value is not None}


def _token(key: str = "current", kid: str | None = None, **changed: Any) -> str:
    return jwt.encode(_claims(**changed), _key(key), "RS256", {"kid": kid or key})


def _without_signature(token: str, instead: str = "SIGNATURE_REMOVED_BY_GOOGLE") -> str:
    return token.rpartition(".")[0] + "." + instead


class Issuer:
    """The JWKS endpoint as the verifier sees it, with a clock moved by hand."""

    def __init__(self, *keys: str, cache: str = "public, max-age=3600, must-revalidate") -> None:
        self.keys = [_jwk(key) for key in keys]
        self.cache = cache
        self.answer: Callable[[], httpx.Response] = self._keys
        self.fetched = 0
        self.now = 1000.0

    def _keys(self) -> httpx.Response:
        return httpx.Response(200, json={"keys": self.keys}, headers={"Cache-Control": self.cache})

    def down(self) -> httpx.Response:
        raise httpx.ConnectError("refused")

    def fetch(self, url: str) -> httpx.Response:
        assert url == JWKS_URL
        self.fetched += 1
        response = self.answer()
        response.request = httpx.Request("GET", url)
        return response

    def key_set(self) -> KeySet:
        return KeySet(JWKS_URL, self.fetch, clock=lambda: self.now)


def _settings(**changed: Any) -> Settings:
    values: dict[str, Any] = {
        "database_url": "postgresql+pg8000://nobody@127.0.0.1/none",
        "push_issuer": ISSUER,
        "push_jwks_url": JWKS_URL,
        "push_audience": BASE,
        "push_service_account": ACCOUNT,
    }
    return Settings(**values | changed)


def _verifier(issuer: Issuer | None = None, **changed: Any) -> PushVerifier:
    return PushVerifier(_settings(**changed), (issuer or Issuer("current")).key_set())


@pytest.fixture(params=["verified", "removed"])
def shape(request: pytest.FixtureRequest) -> str:
    """Both shapes a token reaches us in (FACTS): with its signature, and after Cloud Run's IAM removed it."""
    return str(request.param)


def _present(shape: str, token: str, path: str = PATH) -> None:
    shown = token if shape == "verified" else _without_signature(token)
    _verifier(push_token_signature=shape).verify(f"Bearer {shown}", path)


def test_a_true_token_passes_in_both_shapes(shape: str) -> None:
    """Pub/Sub's own token opens the door, on a laptop and behind IAM."""
    _present(shape, _token())
    _present(shape, _token(iss="accounts.google.com"))


def test_an_empty_signature_counts_as_removed() -> None:
    """Only the setting decides whether a signature is needed, not what stands in its place."""
    _verifier(push_token_signature="removed").verify(f"Bearer {_without_signature(_token(), '')}", PATH)


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "https://evil.example"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": BASE + "/sources/web"},
        {"aud": BASE},
        {"aud": "https://other.a.run.app" + PATH},
        {"aud": None},
        {"aud": []},
        {"aud": {"a": 1}},
        {"exp": int(time.time()) - LEEWAY - 5},
        {"exp": None},
        {"exp": "soon"},
        {"exp": float("inf")},
        {"exp": [1]},
        {"iat": int(time.time()) + LEEWAY + 300},
        {"iat": None},
        {"iat": float("inf")},
        {"nbf": int(time.time()) + LEEWAY + 300},
        {"nbf": float("nan")},
    ],
    # No moments in the names: workers that collect at different seconds must find the same tests.
    ids=lambda changed: ",".join(
        f"{k}={type(v).__name__}:{re.sub(r'[0-9]{6,}', 'moment', str(v))}" for k, v in changed.items()
    ),
)
def test_a_token_with_wrong_claims_proves_nothing(shape: str, changed: dict[str, Any]) -> None:
    """Issuer, audience and times count with and without a signature; whatever is wrong is a 401, never a crash."""
    header = {"alg": "RS256", "kid": "current", "typ": "JWT"}
    payload = json.dumps(_claims(**changed)).encode()
    token = jwt.PyJWS().encode(payload, _key("current"), "RS256", header)
    with pytest.raises(NotAuthenticated):
        _present(shape, token)


@pytest.mark.parametrize(
    "changed",
    [
        {"email": "other@noesis.iam.gserviceaccount.com"},
        {"email": ACCOUNT.upper()},
        {"email": None},
        {"email": [ACCOUNT]},
        {"email_verified": False},
        {"email_verified": None},
        {"email_verified": "true"},
        {"email_verified": 1},
    ],
    ids=str,
)
def test_a_true_token_of_somebody_else_is_forbidden(shape: str, changed: dict[str, Any]) -> None:
    """Google issues tokens to everyone; only the one verified account may push here (403)."""
    with pytest.raises(NotAuthorised):
        _present(shape, _token(**changed))


def test_a_few_seconds_of_clock_difference_are_forgiven(shape: str) -> None:
    """Two machines' clocks never agree to the second."""
    now = int(time.time())
    _present(shape, _token(exp=now - LEEWAY + 10, iat=now - 100))
    _present(shape, _token(iat=now + LEEWAY - 10))


def test_the_token_of_one_source_does_not_open_another(shape: str) -> None:
    """The path is part of the audience, so the source of a document is proven, not claimed."""
    token = _token(aud=BASE + "/sources/upstream")
    _present(shape, token, "/sources/upstream")
    for other in ("/sources/web", "/", "/sources/upstream/x", "/sources", "/dead-letters"):
        with pytest.raises(NotAuthenticated):
            _present(shape, token, other)


def test_the_root_path_may_be_named_with_or_without_its_slash(shape: str) -> None:
    """Pub/Sub's audience for a root endpoint is the bare address."""
    _present(shape, _token(aud=BASE), "/")
    _present(shape, _token(aud=BASE + "/"), "/")


@pytest.mark.parametrize("scheme", ["", "Bearer", "Bearer ", "Basic dTpw", "bearer\t", "Token x", " Bearer x"])
def test_without_a_bearer_token_nobody_enters(shape: str, scheme: str) -> None:
    """A push without a token is a 401."""
    with pytest.raises(NotAuthenticated):
        _verifier(push_token_signature=shape).verify(scheme, PATH)


def test_a_signature_by_another_key_is_refused() -> None:
    """Naming a known key is not having it."""
    with pytest.raises(NotAuthenticated):
        _present("verified", _token("thief", kid="current"))


def test_a_token_without_signature_is_refused_where_signatures_are_checked() -> None:
    """Removing the signature must not be a way in on a laptop or without IAM."""
    with pytest.raises(NotAuthenticated):
        _verifier().verify(f"Bearer {_without_signature(_token())}", PATH)


def test_changed_claims_break_the_signature() -> None:
    """The claims are what was signed."""
    header, _, signature = _token().split(".")
    payload = base64.urlsafe_b64encode(json.dumps(_claims(sub="2")).encode()).decode().rstrip("=")
    with pytest.raises(NotAuthenticated):
        _verifier().verify(f"Bearer {header}.{payload}.{signature}", PATH)


def _forged(algorithm: str, signature: Callable[[bytes], bytes]) -> str:
    def encoded(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    header = encoded(json.dumps({"alg": algorithm, "kid": "current", "typ": "JWT"}).encode())
    signed = f"{header}.{encoded(json.dumps(_claims()).encode())}"
    return f"{signed}.{encoded(signature(signed.encode()))}"


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS512", "ES256", ""])
def test_other_algorithms_are_refused(algorithm: str) -> None:
    """The verifier chooses the algorithm, not the token (RFC 8725, 3.1)."""
    with pytest.raises(NotAuthenticated):
        _verifier().verify(f"Bearer {_forged(algorithm, lambda signed: b'')}", PATH)


def test_the_public_key_is_not_a_shared_secret() -> None:
    """Key confusion: HS256 signed with the published RSA key does not verify (RFC 8725, 2.1)."""
    import hmac

    public = _key("current").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    token = _forged("HS256", lambda signed: hmac.new(public, signed, "sha256").digest())
    with pytest.raises(NotAuthenticated):
        _verifier().verify(f"Bearer {token}", PATH)


def _nested(depth: int) -> str:
    return base64.urlsafe_b64encode(b"[" * depth).decode().rstrip("=")


@pytest.mark.parametrize(
    "token",
    ["x", "..", "a.b.c", "é.ü.ß", "a" * 8000, f"{_nested(5000)}.e30.", f"e30.{_nested(5000)}.x", "e30.e30.", "\x00"],
)
def test_garbage_instead_of_a_token_is_refused(shape: str, token: str) -> None:
    """Nonsense is a 401, not an error of ours."""
    with pytest.raises(NotAuthenticated):
        _verifier(push_token_signature=shape).verify(f"Bearer {token}", PATH)


json_values = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5) | st.lists(st.text())


@given(
    st.sampled_from(["verified", "removed"]),
    st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]), json_values, max_size=4),
    st.dictionaries(st.sampled_from([*_claims(), "nbf", "jti"]), json_values, min_size=1, max_size=3),
)
def test_any_header_and_claims_are_refused_politely(
    shape: str, header: dict[str, Any], changed: dict[str, Any]
) -> None:
    """Whatever types stand in a forged token, the answer is 401 or 403."""

    def encoded(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    token = f"{encoded(header)}.{encoded(_claims(email='eve@evil.example') | changed)}.AAAA"
    with pytest.raises((NotAuthenticated, NotAuthorised)):
        _verifier(push_token_signature=shape).verify(f"Bearer {token}", PATH)


def test_keys_are_fetched_once_for_as_long_as_they_last() -> None:
    """Google's own verifier fetches on every call (FACTS); ours obeys max-age."""
    issuer = Issuer("current")
    verifier = _verifier(issuer)
    for _ in range(20):
        verifier.verify(f"Bearer {_token()}", PATH)
    issuer.now += 3599
    verifier.verify(f"Bearer {_token()}", PATH)
    assert issuer.fetched == 1
    issuer.now += 1
    verifier.verify(f"Bearer {_token()}", PATH)
    assert issuer.fetched == 2


def test_a_new_key_is_found_without_waiting_for_max_age() -> None:
    """An issuer that changes its keys early is followed at the first token with an unknown key id."""
    issuer = Issuer("current")
    verifier = _verifier(issuer)
    verifier.verify(f"Bearer {_token()}", PATH)
    issuer.keys = [_jwk("next")]
    issuer.now += REFETCH_SECONDS
    verifier.verify(f"Bearer {_token('next')}", PATH)
    assert issuer.fetched == 2
    with pytest.raises(NotAuthenticated):
        verifier.verify(f"Bearer {_token()}", PATH)


@pytest.mark.parametrize("reachable", [True, False])
def test_forged_key_ids_make_us_fetch_at_most_once_a_minute(reachable: bool) -> None:
    """Whoever sends invented key ids cannot turn us against the issuer, whether it answers or not."""
    issuer = Issuer("current")
    verifier = _verifier(issuer)
    verifier.verify(f"Bearer {_token()}", PATH)
    if not reachable:
        issuer.answer = issuer.down
    for second in range(2 * REFETCH_SECONDS):
        issuer.now += 1
        with pytest.raises(NotAuthenticated):
            verifier.verify(f"Bearer {_token('thief', kid=f'invented-{second}')}", PATH)
    assert issuer.fetched == 1 + 2
    verifier.verify(f"Bearer {_token()}", PATH)


def test_old_keys_serve_while_the_issuer_is_down() -> None:
    """A bad minute at the issuer refuses nobody whose key is known."""
    issuer = Issuer("current")
    verifier = _verifier(issuer)
    verifier.verify(f"Bearer {_token()}", PATH)
    issuer.answer = issuer.down
    issuer.now += 3600
    for _ in range(5):
        verifier.verify(f"Bearer {_token()}", PATH)
    assert issuer.fetched == 2
    issuer.answer = issuer._keys
    issuer.now += REFETCH_SECONDS
    verifier.verify(f"Bearer {_token()}", PATH)
    assert issuer.fetched == 3


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500),
        httpx.Response(302, headers={"Location": "https://evil.example/jwks"}),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json="keys"),
        httpx.Response(200, json={"keys": "none"}),
        httpx.Response(200, json={"keys": []}),
        httpx.Response(200, json={"keys": [7, {"kty": "RSA", "kid": "current"}, {"kid": "current"}]}),
        httpx.Response(200, json={"keys": [{"kty": "oct", "kid": "current", "k": "c2VjcmV0"}]}),
    ],
    ids=["500", "redirect", "html", "list", "text", "no-list", "empty", "broken", "symmetric"],
)
def test_without_any_key_the_push_waits(answer: httpx.Response) -> None:
    """No keys at all is our trouble, not the sender's: 503, and the next try fetches again."""
    issuer = Issuer("current")
    issuer.answer = lambda: answer
    verifier = _verifier(issuer)
    with pytest.raises(TransientError):
        verifier.verify(f"Bearer {_token()}", PATH)
    issuer.answer = issuer.down
    with pytest.raises(TransientError):
        verifier.verify(f"Bearer {_token()}", PATH)
    issuer.answer = issuer._keys
    verifier.verify(f"Bearer {_token()}", PATH)


def test_keys_of_other_kinds_do_not_disturb() -> None:
    """An issuer may publish an elliptic key beside; naming it does not crash the verifier."""
    issuer = Issuer("current")
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    elliptic: dict[str, Any] = jwt.algorithms.ECAlgorithm.to_jwk(curve, as_dict=True)
    issuer.keys.append(elliptic | {"kid": "curve"})
    verifier = _verifier(issuer)
    verifier.verify(f"Bearer {_token()}", PATH)
    with pytest.raises(NotAuthenticated):
        verifier.verify(f"Bearer {_token(kid='curve')}", PATH)


@pytest.mark.parametrize("missing", ["push_audience", "push_service_account"])
def test_a_service_that_does_not_know_its_callers_does_not_start(missing: str) -> None:
    """An empty audience or account must not mean everyone."""
    with pytest.raises(SettingsError, match=missing.upper()):
        PushVerifier(_settings(**{missing: ""}))


def test_a_refusal_quotes_nothing_of_the_token() -> None:
    """Tokens are credentials: they do not go into logs."""
    token = _token("thief", kid="current")
    with pytest.raises(NotAuthenticated) as caught:
        _verifier().verify(f"Bearer {token}", PATH)
    assert not any(part in str(caught.value) for part in token.split("."))
