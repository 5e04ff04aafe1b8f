"""The services whose keys have no shape of their own: a random value under their name is taken for one."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from aperion.redaction.regexes import regex
from aperion.redaction.shapes import trie


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Those for which gitleaks (MIT) knows a key by its name only.
_VENDORS: Final = _words(
    """adafruit adobe airtable algolia alibaba artifactory asana atlassian beamer bintray bitbucket bittrex
    cloudflare codecov cohere coinbase confluence confluent contentful datadog digitalocean discord dnkey
    droneci dropbox etsy facebook fastly finicity finnhub flickr freshbooks gitter gocardless heroku hubspot
    intercom jfrog jira kraken kucoin launchdarkly linkedin linked_in linked-in lob_ mailchimp mailgun
    mapbox mattermost meraki messagebird message-bird message_bird netlify newrelic new-relic new_relic
    nytimes okta openai pagerduty pendo plaid privateai private_ai private-ai pusher rapidapi segment
    sendbird sendgrid sentry snyk sonar sourcegraph squarespace stripe sumologic sumo_ telegram travis
    trello twilio twitch twitter typeform yandex zendesk zoom_ deepl deepseek cloudinary contrib_sys
    contribsys amplitude mixpanel rollbar bugsnag loggly logdna opsgenie victorops auth0 calendly circleci
    dockerhub easypost elastic fullstory gemini iterable klaviyo lokalise mistral nasa omdb openweather
    paypal pipedrive pinecone replicate salesforce shodan spotify strava sumsub tmdb virustotal wakatime
    weather weatherapi workato wepay xero ibm softlayer"""
)
# What ends a name that holds no key.
_HARMLESS: Final = _words(
    """url uri href link host hostname domain endpoint version name path file dir region zone project bucket
    image digest sha commit checksum ref branch tag date time timestamp ray username user email page
    pages post posts channel team org orgs title text status state type kind size count topic queue table
    schema format model locale class module package import style color icon svg css template"""
)
_HARMLESS_WORDS: Final = ("on", "at")  # no endings: an application is no such thing

_SECRET: Final = ("secret", "token", "passw", "apikey", "api_key", "api-key", "credential", "accesskey", "privatekey")
_ABOUT_KEYS: Final = ("id", "ids", "arn", "hash", "length", "expires", "expiry", "count", "limit", "manager", "store")


# Fourteen characters or more, with a digit and a letter among them.
_RANDOM: Final = r"""(?=[^A-Za-z\s"'`]{0,64}[A-Za-z])(?=[^\d\s"'`]{0,64}\d)[\w=.+/:~\-]{14,512}+"""
_ASSIGNED = regex(
    rf"""[\\"'`]{{0,8}}{_RANDOM}(?=[\s"'`;,&)\]}}\\<]|\Z)
    |[\\"'`]{{0,8}}[0-9a-f]{{8}}:[0-9a-f]{{8}}(?!\w)""",
    re.VERBOSE,
)
_WHOLE = regex(_RANDOM)
_MIXED_RUN = regex(r"(?<![A-Za-z0-9])(?:[A-Za-z]++[0-9]|[0-9]++[A-Za-z])[A-Za-z0-9]*+(?<=[A-Za-z0-9]{6})")
"""Letters and digits in one run, which neither 'new-customers-2026' nor 2026-11-23T10:00:00Z has."""
_WORD_BREAK = regex(r"[_\-.: ]|(?<=[a-z0-9])(?=[A-Z])")
_JAVA = regex(r"-{1,2}D(?=[A-Za-z])")


def may_hold_key(name: str) -> bool:
    """Tell whether a random value under a name is a key: that of a service, or 'secret_do_not_commit'."""
    name = _JAVA.sub("", name, count=1) if name.startswith("-") else name
    lowered = name.lower()
    if lowered.endswith(_HARMLESS) or _last_word(name) in _HARMLESS_WORDS:
        return False
    if _named().search(lowered) is not None:
        return True
    return not lowered.endswith(_ABOUT_KEYS) and any(word in lowered for word in _SECRET)


def names_key(name: str) -> bool:
    """Tell the same of a name by which a value is looked up: what is called an id is no key there."""
    return may_hold_key(name) and _last_word(name) not in _ABOUT_KEYS


def is_random(value: str) -> bool:
    """Tell a key from words, dates and addresses of pages."""
    return _WHOLE.fullmatch(value) is not None and "://" not in value and _MIXED_RUN.search(value) is not None


def random_end(text: str, at: int) -> int:
    """Return the end of the random value, with the quotes before it, that begins in a text here, or 0."""
    value = _ASSIGNED.match(text, at)
    return 0 if value is None else value.end()


def _last_word(name: str) -> str:
    return _WORD_BREAK.split(name)[-1].lower()


@cache
def _named() -> re.Pattern[str]:
    return re.compile(f"(?<![a-z])(?:{trie(_VENDORS)})")
