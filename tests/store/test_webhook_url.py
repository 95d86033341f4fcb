"""Where webhooks may go: addresses that lead inside are refused in every dress, and URLs that say too much."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from broker.store.webhook_url import Allowed, Target, is_public, may_reach, read_allowed, target_of

INSIDE = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1"),
    *("169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.0.9"),
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "198.19.255.255", "192.88.99.1"),
    *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:2::1"),
    *("2001:10::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::", "3fff::1", "5f00::1"),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "4000::1"),
]
OUTSIDE = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "192.0.1.1", "198.17.0.1", "2001:4860:4860::8888", "2a00:1450::1"]

OWN = read_allowed(["hooks.internal", "10.1.0.0/16", "fd00::/8", "127.0.0.1"])


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_that_leads_inside_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not may_reach(address, "example.com", Allowed())


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_address_of_the_internet_is(address: str) -> None:
    assert may_reach(address, "example.com", Allowed())


@pytest.mark.parametrize("text", ["", "0x7f.1", "2130706433", "127.1", "0177.0.0.1", "8.8.8.8 ", "example.com"])
def test_what_is_no_address_is_reached_by_nobody(text: str) -> None:
    assert not may_reach(text, "example.com", Allowed())


def test_ones_own_hosts_and_networks_may_be_reached_and_nothing_beside_them() -> None:
    assert may_reach("10.1.2.3", "example.com", OWN)
    assert may_reach("fd12::1", "example.com", OWN)
    assert may_reach("169.254.169.254", "hooks.internal", OWN)  # wherever it resolves to: that name is the operator's
    assert not may_reach("10.2.0.1", "example.com", OWN)
    assert not may_reach("169.254.169.254", "not.hooks.internal", OWN)
    assert not may_reach("::ffff:10.1.2.3", "example.com", OWN)


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://a.example", Target("https", "a.example", 443, "/"), "a.example"),
        ("https://A.Example.:8443/x/y?z=1%20", Target("https", "a.example", 8443, "/x/y?z=1%20"), "a.example:8443"),
        ("https://8.8.8.8/", Target("https", "8.8.8.8", 443, "/"), "8.8.8.8"),
        ("https://[2a00:1450::1]:444/?q", Target("https", "2a00:1450::1", 444, "/?q"), "[2a00:1450::1]:444"),
        ("https://xn--bcher-kva.example/", Target("https", "xn--bcher-kva.example", 443, "/"), "xn--bcher-kva.example"),
        ("http://hooks.internal/", Target("http", "hooks.internal", 80, "/"), "hooks.internal"),
        ("http://10.1.2.3:9000/", Target("http", "10.1.2.3", 9000, "/"), "10.1.2.3:9000"),
        ("http://[fd00::1]/", Target("http", "fd00::1", 80, "/"), "[fd00::1]"),
    ],
)
def test_a_url_is_taken_apart_once_and_its_authority_is_the_names(url: str, target: Target, authority: str) -> None:
    assert target_of(url, OWN) == target
    assert target.authority == authority


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("http://a.example/", "https, or who is on the way"),
        ("http://10.2.0.1/", "not on the internet"),
        ("ftp://a.example/", "begins with https"),
        ("a.example/hooks", "begins with https"),
        ("//a.example", "begins with https"),
        ("javascript:alert(1)", "begins with https"),
        ("https://", "not an address"),
        ("https:///x", "not an address"),
        ("https://a.example:0/", "not an address"),
        ("https://a.example:65536/", "not an address"),
        ("https://a.example:x/", "not an address"),
        ("https://[::1/", "not an address"),
        ("https://[fe80::1%25eth0]/", "not an address"),
        ("https://a..example/", "not an address"),
        ("https://a%2eexample/", "not an address"),
        ("https://user:word@a.example/", "no user and password"),
        ("https://@a.example/", "no user and password"),
        ("https://a.example#@10.0.0.1/", "behind a #"),
        ("https://a.example/#", "behind a #"),
        ("https://a.example\\@10.0.0.1/", "ASCII"),
        ("https://a.example/\r\nHost: b", "ASCII"),
        ("https://a.example/ x", "ASCII"),
        ("https://bücher.example/", "xn--"),
        ("https://127.0.0.2/", "not on the internet"),
        ("https://[::1]/", "not on the internet"),
        ("https://[::ffff:127.0.0.1]/", "not on the internet"),
        ("https://169.254.169.254/latest/meta-data", "not on the internet"),
        ("https://localhost/", "not on the internet"),
        ("https://x.localhost:9000/", "not on the internet"),
        ("https://a.example/" + 2048 * "x", "2048 characters"),
    ],
)
def test_a_url_that_nobody_would_be_sent_to_is_refused_in_plain_words(url: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong) as refused:
        target_of(url, OWN)
    assert len(url) < 12 or url not in str(refused.value)


@pytest.mark.parametrize("part", ["", "*", "a b", "10.0.0.0/33", "https://a.example", "a..b", 300 * "a"])
def test_what_is_neither_host_nor_network_is_not_allowed(part: str) -> None:
    with pytest.raises(ValueError, match="host"):
        read_allowed([part])
