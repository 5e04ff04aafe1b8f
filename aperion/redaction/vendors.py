"""The services whose keys have no shape of their own: a random value under their name is taken for one."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

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
    image digest sha commit checksum ref branch tag date time timestamp at on ray username user email page
    pages post posts channel team org orgs title text status state type kind size count topic queue table
    schema format model locale class module package import style color icon svg css template"""
)

_SECRET: Final = ("secret", "token", "passw", "apikey", "api_key", "api-key", "credential", "accesskey", "privatekey")
_ABOUT_KEYS: Final = ("id", "ids", "arn", "hash", "length", "expires", "expiry", "count", "limit", "manager", "store")


def may_hold_key(name: str) -> bool:
    """Tell whether a random value under a name is a key: that of a service, or 'secret_do_not_commit'."""
    lowered = name.lower()
    if lowered.endswith(_HARMLESS):
        return False
    if _named().search(lowered) is not None:
        return True
    return not lowered.endswith(_ABOUT_KEYS) and any(word in lowered for word in _SECRET)


@cache
def _named() -> re.Pattern[str]:
    return re.compile(f"(?<![a-z])(?:{trie(_VENDORS)})")
