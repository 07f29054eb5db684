"""An entry of WEB_SOURCES_ALLOW opens a port for the addresses that it names, and for no others."""

from __future__ import annotations

import ipaddress

import pytest

from shared.fetching.addresses import Allowance, allowance, check_address, check_url, is_public
from shared.fetching.failures import FetchFailed

PUBLIC = ipaddress.ip_address("93.184.216.34")
INSIDE = ipaddress.ip_address("10.1.2.3")


def refusal(url: str, allowed: Allowance) -> str:
    """Why a URL is refused."""
    with pytest.raises(FetchFailed) as refused:
        check_url(url, allowed)
    return refused.value.reason


def test_a_port_that_is_open_inside_is_not_open_on_the_internet() -> None:
    """Port 8080 of one's own network: a public address at 8080 is still refused, written as a number or by name."""
    allowed = allowance("10.0.0.0/8:8080")
    assert check_url("http://10.1.2.3:8080/", allowed).port == 8080
    assert refusal(f"http://{PUBLIC}:8080/", allowed) == "address-not-allowed"
    # A name is judged at the connection, when its addresses are known.
    target = check_url("http://www.example.com:8080/", allowed)
    check_address(INSIDE, target, allowed)
    with pytest.raises(FetchFailed, match="public address"):
        check_address(PUBLIC, target, allowed)


def test_an_entry_without_a_port_opens_80_and_443_only() -> None:
    """Inside as outside; and an entry with a port opens no other one."""
    assert refusal("http://10.1.2.3:8080/", allowance("10.0.0.0/8")) == "url-not-allowed"
    assert check_url("https://10.1.2.3/", allowance("10.0.0.0/8")).port == 443
    assert refusal("http://10.1.2.3/", allowance("10.0.0.0/8:8080")) == "address-not-allowed"


def test_a_host_that_is_named_opens_a_port_for_itself() -> None:
    """Another name at that port is refused before anything is resolved."""
    allowed = allowance("wiki.example.com:8080")
    target = check_url("http://wiki.example.com:8080/", allowed)
    check_address(INSIDE, target, allowed)
    assert refusal("http://www.example.com:8080/", allowed) == "url-not-allowed"


@pytest.mark.parametrize("address", ["2606:4700:4700::1111%eth0", "fe80::1%1"])
def test_an_address_of_one_network_interface_is_not_public(address: str) -> None:
    """A scope says which interface of ours to leave by: nobody outside can mean that."""
    assert not is_public(ipaddress.ip_address(address))
    assert is_public(ipaddress.ip_address("2606:4700:4700::1111"))


@pytest.mark.parametrize("name", ["münchen.example", "MÜNCHEN.example", "mu\u0308nchen.example", "münchen。example"])
def test_a_name_beyond_ascii_is_one_host_however_it_is_typed(name: str) -> None:
    """In capitals, composed of two characters, with the full stop of another script: what a browser makes of it."""
    assert check_url(f"https://{name}/", Allowance()).host == "xn--mnchen-3ya.example"
