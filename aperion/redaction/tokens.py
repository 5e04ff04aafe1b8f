"""Find the tokens and keys of well-known services by the shapes that their makers gave them.

The makers' own pages are the source where they publish a shape. For the others the public lists of gitleaks
and secretlint (both MIT) say which shapes exist; each is written anew here.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from aperion.redaction.boundaries import begins
from aperion.redaction.regexes import regex
from aperion.redaction.shapes import shape, trie

if TYPE_CHECKING:
    from aperion.redaction.marks import Hide


class Issuer(NamedTuple):
    """Who makes tokens, what their type is called here, and how they look."""

    kind: str
    name: str
    notations: tuple[str, ...]


def _issuer(kind: str, name: str, *notations: str) -> Issuer:
    return Issuer(kind, name, notations)


ISSUERS: Final = (
    _issuer(
        *("AWS_KEY", "AWS: access key ids, temporary ones too"),
        *("AKIA{upper 16}", "ASIA{upper 16}", "ABIA{upper 16}", "ACCA{upper 16}", "A3T{upper 17}"),
    ),
    _issuer("AWS_KEY", "AWS: Bedrock API keys", "ABSK{b64 60+}", "bedrock-api-key-{b64 20+}"),
    _issuer("AWS_SESSION_TOKEN", "AWS: session tokens", "IQoJb3JpZ2lu{b64 100+}", "FwoGZXIvYXdz{b64 100+}"),
    _issuer("GCP_KEY", "Google: API keys", "AIza{url 35}", "AQ.Ab8{url 30+}"),
    _issuer("GCP_SECRET", "Google: OAuth client secrets", "GOCSPX-{url 20+}"),
    _issuer(
        *("GCP_TOKEN", "Google: OAuth access and refresh tokens"),
        *("ya29.{url 20+}", "1//0{url 30+}", "ya29.a0{wide 20+}"),
    ),
    _issuer("AZURE_KEY", "Azure: DevOps and storage keys", "AzCa{an 40+}"),
    _issuer(
        *("GITHUB_TOKEN", "GitHub: classic, OAuth, user, server and refresh tokens"),
        *("ghp_{an 16+}", "gho_{an 16+}", "ghu_{an 16+}", "ghs_{an 16+}", "ghr_{an 16+}"),
        *("github_pat_{an 10+}_{an 20+}", "github_pat_{an 30+}", "ghs_{an 4+}_{wide 30+}"),
    ),
    _issuer(
        *("GITLAB_TOKEN", "GitLab: tokens of users, projects, runners and agents"),
        *("glpat-{wide 12+}", "gldt-{url 12+}", "glft-{url 12+}", "glsoat-{url 12+}", "glrt-{wide 12+}"),
        *("glrtr-{wide 12+}", "glptt-{url 20+}", "glimt-{url 12+}", "glagent-{url 20+}", "gloas-{url 20+}"),
        *("glffct-{url 12+}", "glcbt-{url 12+}", "glwt-{url 12+}", "GR1348941{url 20+}", "_gitlab_session={an 32}"),
    ),
    _issuer(
        *("SLACK_TOKEN", "Slack: tokens of bots, users, apps, workspaces and configurations"),
        *("xoxb-{url 10+}", "xoxp-{url 10+}", "xoxa-{url 10+}", "xoxr-{url 10+}", "xoxs-{url 10+}", "xoxo-{url 10+}"),
        *("xoxe-{url 10+}", "xoxe.xoxb-{url 20+}", "xoxe.xoxp-{url 20+}", "xoxc-{url 10+}", "xoxd-{wide 10+}"),
        *("xapp-{digit 1}-{an 8+}-{digit 8+}-{an 16+}", "XOXB-{url 10+}", "XOXP-{url 10+}"),
        *("xwfp-{url 20+}",),
    ),
    _issuer(
        *("STRIPE_KEY", "Stripe: secret, restricted and publishable keys, webhook secrets"),
        *("sk_live_{an 10+}", "sk_test_{an 10+}", "sk_prod_{an 10+}", "rk_live_{an 10+}", "rk_test_{an 10+}"),
        *("rk_prod_{an 10+}", "pk_live_{an 10+}", "pk_test_{an 10+}", "whsec_{b64 20+}", "sk_org_{wide 20+}"),
    ),
    _issuer("OPENAI_KEY", "OpenAI: keys of projects, services, admins and users", "sk-proj-{url 20+}"),
    _issuer("OPENAI_KEY", "OpenAI", "sk-svcacct-{url 20+}", "sk-admin-{url 20+}", "sk-None-{url 20+}", "sk-{an 32+}"),
    _issuer("ANTHROPIC_KEY", "Anthropic: API, admin and OAuth keys", "sk-ant-{url 20+}"),
    _issuer("OPENROUTER_KEY", "OpenRouter", "sk-or-v1-{hex 32+}"),
    _issuer("HUGGINGFACE_TOKEN", "Hugging Face: users and organisations", "hf_{an 30+}", "api_org_{an 30+}"),
    _issuer("REPLICATE_TOKEN", "Replicate", "r8_{an 36+}"),
    _issuer("PERPLEXITY_KEY", "Perplexity", "pplx-{an 32+}"),
    _issuer("GROQ_KEY", "Groq", "gsk_{an 40+}"),
    _issuer("XAI_KEY", "xAI", "xai-{an 60+}"),
    _issuer("TWILIO_KEY", "Twilio: account and key ids", "SK{hex 32}", "AC{hex 32}"),
    _issuer("SENDGRID_KEY", "SendGrid", "SG.{url 16+}.{wide 20+}", "SG.{wide 60+}"),
    _issuer("MAILGUN_KEY", "Mailgun", "key-{hex 32}", "pubkey-{hex 32}"),
    _issuer("MAILCHIMP_KEY", "Mailchimp: transactional", "md-{url 22}"),
    _issuer("BREVO_KEY", "Brevo, once Sendinblue", "xkeysib-{hex 40+}-{an 16}", "xsmtpsib-{hex 40+}-{an 16}"),
    _issuer("RESEND_KEY", "Resend", "re_{an 8}_{an 20+}"),
    _issuer("NPM_TOKEN", "npm", "npm_{an 36+}"),
    _issuer("PYPI_TOKEN", "PyPI", "pypi-AgE{url 40+}"),
    _issuer("RUBYGEMS_KEY", "RubyGems", "rubygems_{hex 40+}"),
    _issuer("CLOJARS_TOKEN", "Clojars", "CLOJARS_{an 40+}"),
    _issuer("CARGO_TOKEN", "crates.io", "cio{an 32}"),
    _issuer("NUGET_KEY", "NuGet", "oy2{lower 43}"),
    _issuer("DOCKER_TOKEN", "Docker Hub", "dckr_pat_{url 20+}", "dckr_oat_{url 20+}"),
    _issuer("JFROG_KEY", "JFrog Artifactory", "AKCp{an 60+}", "cmVmd{an 59+}"),
    _issuer("DATABRICKS_TOKEN", "Databricks", "dapi{hex 32}-{digit 1}", "dapi{hex 32}", "dose{hex 32}", "dkea{hex 32}"),
    _issuer("DIGITALOCEAN_TOKEN", "DigitalOcean", "dop_v1_{hex 40+}", "doo_v1_{hex 40+}", "dor_v1_{hex 40+}"),
    _issuer("HEROKU_KEY", "Heroku", "HRKU-{url 36+}"),
    _issuer("NETLIFY_TOKEN", "Netlify", "nfp_{an 36+}", "nfc_{an 36+}", "nfo_{an 36+}"),
    _issuer("VERCEL_TOKEN", "Vercel", "vcp_{an 24+}", "vci_{an 24+}", "vca_{an 24+}", "vcr_{an 24+}", "vck_{an 24+}"),
    _issuer("FLY_TOKEN", "Fly.io", "fo1_{url 40+}", "fm1r_{wide 80+}", "fm1a_{wide 80+}", "fm2_{wide 80+}"),
    _issuer("SCALINGO_TOKEN", "Scalingo", "tk-us-{url 40+}"),
    _issuer("SUPABASE_KEY", "Supabase", "sbp_{hex 40}", "sb_secret_{url 20+}"),
    _issuer("NEON_KEY", "Neon", "napi_{lower 40+}"),
    _issuer(
        "PLANETSCALE_TOKEN", "PlanetScale", "pscale_tkn_{wide 30+}", "pscale_oauth_{wide 30+}", "pscale_pw_{wide 30+}"
    ),
    _issuer("CLOUDFLARE_KEY", "Cloudflare: origin CA keys, and tokens since 2025", "v1.0-{hex 24}-{hex 100+}"),
    _issuer("CLOUDFLARE_KEY", "Cloudflare", "cfut_{an 40+}", "cfat_{an 40+}", "cfk_{an 40+}"),
    _issuer("ALIBABA_KEY", "Alibaba Cloud", "LTAI{an 16+}"),
    _issuer("TENCENT_KEY", "Tencent Cloud", "AKID{an 32+}"),
    _issuer("YANDEX_KEY", "Yandex Cloud", "AQVN{url 35+}", "t1.{upper 1}{url 0-40}.{wide 60+}", "YC{url 38}"),
    _issuer("SHOPIFY_TOKEN", "Shopify", "shpat_{hex 32}", "shpca_{hex 32}", "shppa_{hex 32}", "shpss_{hex 32}"),
    _issuer("SQUARE_TOKEN", "Square", "EAAA{url 50+}", "sq0atp-{url 22+}", "sq0csp-{url 40+}", "sq0idp-{url 22+}"),
    _issuer("PAYPAL_TOKEN", "PayPal and Braintree", "access_token$production${lower 16}${hex 32}"),
    _issuer("PAYPAL_TOKEN", "PayPal and Braintree", "access_token$sandbox${lower 16}${hex 32}"),
    _issuer("ADYEN_KEY", "Adyen", "AQE{b64 2}hmf{wide 60+}"),
    _issuer("PLAID_TOKEN", "Plaid", *(f"access-{env}-{{url 30+}}" for env in ("sandbox", "development", "production"))),
    _issuer("RAZORPAY_KEY", "Razorpay", "rzp_live_{an 14+}", "rzp_test_{an 14+}"),
    _issuer("MERCADOPAGO_TOKEN", "Mercado Pago", "APP_USR-{url 40+}"),
    _issuer("FLUTTERWAVE_KEY", "Flutterwave", *(f"FLW{sort}_TEST-{{hex 12+}}" for sort in ("SECK", "PUBK"))),
    _issuer("FLUTTERWAVE_KEY", "Flutterwave", *(f"FLW{sort}-{{hex 12+}}" for sort in ("SECK", "PUBK"))),
    _issuer("EASYPOST_KEY", "EasyPost", "EZAK{an 54}", "EZTK{an 54}"),
    _issuer("SHIPPO_TOKEN", "Shippo", "shippo_live_{hex 40}", "shippo_test_{hex 40}"),
    _issuer("DUFFEL_TOKEN", "Duffel", "duffel_test_{wide 40+}", "duffel_live_{wide 40+}"),
    _issuer("LOB_KEY", "Lob", "live_pub_{hex 31}", "test_pub_{hex 31}", "live_{hex 35}", "test_{hex 35}"),
    _issuer("FACEBOOK_TOKEN", "Facebook", "EAAC{an 60+}", "EAAM{an 60+}", "EAAG{an 60+}", "EAAB{an 60+}"),
    _issuer("INSTAGRAM_TOKEN", "Instagram", "IGQV{url 60+}", "IGAA{url 60+}"),
    _issuer("LINKEDIN_SECRET", "LinkedIn", "WPL_AP1.{an 16}.{wide 8+}"),
    _issuer("ATLASSIAN_TOKEN", "Atlassian", "ATATT3{wide 40+}", "ATCTT3{wide 40+}", "ATBB{an 28+}", "ATSTT3{wide 40+}"),
    _issuer("LINEAR_KEY", "Linear", "lin_api_{an 32+}", "lin_oauth_{an 32+}", "lin_wh_{an 32+}"),
    _issuer("NOTION_TOKEN", "Notion", "ntn_{an 40+}", "secret_{an 43}"),
    _issuer("ASANA_TOKEN", "Asana", "1/{digit 16}:{hex 32}", "2/{digit 16}/{digit 16}:{hex 32}"),
    _issuer("AIRTABLE_TOKEN", "Airtable", "pat{an 14}.{hex 64}"),
    _issuer("FIGMA_TOKEN", "Figma", "figd_{url 36+}"),
    _issuer("POSTMAN_KEY", "Postman", "PMAK-{hex 24}-{hex 34}", "PMAT-{an 26}"),
    _issuer("TYPEFORM_TOKEN", "Typeform", "tfp_{wide 40+}"),
    _issuer("HUBSPOT_TOKEN", "HubSpot", "pat-na1-{url 36}", "pat-na2-{url 36}", "pat-eu1-{url 36}"),
    _issuer("INTRA42_SECRET", "42 Intra", "s-s4t2ud-{hex 64}", "s-s4t2af-{hex 64}"),
    _issuer("SALESFORCE_TOKEN", "Salesforce", "00D{an 12}!{wide 80+}", "00D{an 15}!{wide 80+}"),
    _issuer("DATADOG_KEY", "Datadog", "ddapp_{an 30+}", "ddp_{an 30+}"),
    _issuer("NEW_RELIC_KEY", "New Relic", "NRAK-{an 27}", "NRJS-{hex 19}", "NRII-{url 32}", "NRRA-{hex 40+}"),
    _issuer("SENTRY_TOKEN", "Sentry", "sntrys_eyJ{b64 20+}={wide 20+}", "sntrys_eyJ{wide 40+}", "sntryu_{hex 60+}"),
    _issuer("GRAFANA_TOKEN", "Grafana", "glsa_{an 32}_{hex 8}", "glc_{b64 32+}", "eyJrIjoi{b64 40+}"),
    _issuer("DYNATRACE_TOKEN", "Dynatrace", "dt0c01.{upper 24}.{upper 64}", "dt0s01.{upper 24}.{upper 64}"),
    _issuer("DYNATRACE_TOKEN", "Dynatrace", "dt0s16.{an 8}.{an 64}", "dt0c01.{lower 24}.{lower 64}"),
    _issuer("HONEYCOMB_KEY", "Honeycomb", "hcaik_{an 58}", "hcbik_{an 58}", "hcalk_{an 58}"),
    _issuer("POSTHOG_KEY", "PostHog", "phc_{an 40+}", "phx_{an 40+}"),
    _issuer("LAUNCHDARKLY_KEY", "LaunchDarkly", "sdk-{url 36}", "mob-{url 36}"),
    _issuer("VAULT_TOKEN", "HashiCorp Vault", "hvs.{url 20+}", "hvb.{url 20+}", "hvr.{url 20+}"),
    _issuer("DOPPLER_TOKEN", "Doppler", *(f"dp.{kind}.{{wide 40+}}" for kind in ("pt", "st", "ct", "sa", "scim"))),
    _issuer("INFISICAL_TOKEN", "Infisical", "st.{hex 24}.{hex 64}"),
    _issuer("PULUMI_TOKEN", "Pulumi", "pul-{hex 40}"),
    _issuer("INFRACOST_KEY", "Infracost", "ico-{an 32}"),
    _issuer("PREFECT_KEY", "Prefect", "pnu_{an 36}", "pnb_{an 36}"),
    _issuer("README_KEY", "ReadMe", "rdme_{lower 60+}"),
    _issuer("OCTOPUS_KEY", "Octopus Deploy", "API-{upper 26}"),
    _issuer("BUILDKITE_TOKEN", "Buildkite", "bkua_{an 40}", "bkct_{an 40+}"),
    _issuer("CIRCLECI_TOKEN", "CircleCI", "CCIPAT_{url 30+}", "CCIPRJ_{url 30+}"),
    _issuer("HARNESS_TOKEN", "Harness", "pat.{url 22}.{an 24}.{an 20}", "sat.{url 22}.{an 24}.{an 20}"),
    _issuer("OPENSHIFT_TOKEN", "OpenShift", "sha256~{url 43}"),
    _issuer("SOURCEGRAPH_TOKEN", "Sourcegraph", "sgp_{hex 40}", "sgp_local_{hex 40}", "sgp_{hex 16}_{hex 40}"),
    _issuer("SNYK_TOKEN", "Snyk", "snyk_uat.{an 8}.{wide 40+}", "snyk_sat.{an 8}.{wide 40+}"),
    _issuer("SONAR_TOKEN", "SonarQube", "squ_{hex 40}", "sqp_{hex 40}", "sqa_{hex 40}"),
    _issuer("ONEPASSWORD_TOKEN", "1Password", "ops_eyJ{b64 60+}", "A3-{upper 6}-{upper 6}-{upper 5}-{url 15+}"),
    _issuer("ONEPASSWORD_TOKEN", "1Password", "A3-{upper 6}-{upper 11}-{upper 5}-{url 11+}"),
    _issuer("AGE_KEY", "age", "AGE-SECRET-KEY-1{upper 50+}"),
    _issuer(
        "TAILSCALE_KEY",
        "Tailscale",
        *(f"tskey-{kind}-{{url 20+}}" for kind in ("auth", "api", "client", "scim", "webhook")),
    ),
    _issuer("TELNYX_KEY", "Telnyx", "KEY0{hex 30}_{an 22}"),
    _issuer("DEFINED_KEY", "Defined Networking", "dnkey-{wide 26}-{wide 52}"),
    _issuer("FRAMEIO_TOKEN", "Frame.io", "fio-u-{wide 60+}"),
    _issuer("SETTLEMINT_TOKEN", "SettleMint", *(f"sm_{kind}_{{an 16}}" for kind in ("aat", "pat", "sat"))),
    _issuer("ADOBE_SECRET", "Adobe", "p8e-{an 32}", "p8e-{url 26+}"),
    _issuer("CONTENTFUL_TOKEN", "Contentful", "CFPAT-{url 43}"),
    _issuer("CLICKHOUSE_KEY", "ClickHouse Cloud", "4b1d{an 38}"),
    _issuer("MAPBOX_TOKEN", "Mapbox: secret and public tokens", "sk.eyJ{wide 40+}", "pk.eyJ{wide 40+}"),
    _issuer("DROPBOX_TOKEN", "Dropbox", "sl.{url 100+}", "sl.u.{url 60+}"),
    _issuer("PINECONE_KEY", "Pinecone", "pcsk_{an 4+}_{an 40+}"),
    _issuer("LANGSMITH_KEY", "LangSmith", "lsv2_pt_{wide 36+}", "lsv2_sk_{wide 36+}"),
    _issuer("APIFY_TOKEN", "Apify", "apify_api_{an 30+}"),
    _issuer("BITCOIN_KEY", "Bitcoin: extended private keys", "xprv{an 107}"),
)

_BY_PREFIX: Final[dict[str, list[tuple[str, str]]]] = {}
for _maker in ISSUERS:
    for _notation in _maker.notations:
        _BY_PREFIX.setdefault(_notation.partition("{")[0], []).append((_maker.kind, _notation))
_WORDS: Final = regex(r"[a-z]{1,19}+(?:[_\-./][a-z]{1,19}+)*+")


@cache
def _prefixes() -> re.Pattern[str]:
    return re.compile(trie(tuple(_BY_PREFIX)))


@cache
def _prefixes_of_words() -> re.Pattern[str]:
    return re.compile(f"(?<![A-Za-z0-9])(?:{trie(tuple(_BY_PREFIX))})")  # half the time of the other


@cache
def _patterns(prefix: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Return the shapes that begin with a prefix; compiled when it is first met, for there are hundreds."""
    return tuple((kind, re.compile(shape(notation).regex)) for kind, notation in _BY_PREFIX[prefix])


def hide_tokens(text: str, hide: Hide) -> str:
    """Return a text with the tokens of known services hidden."""
    prefixes = _prefixes() if "\\" in text or "%" in text else _prefixes_of_words()
    pieces: list[str] = []
    find, at, position = prefixes.search, 0, 0
    while (found := find(text, position)) is not None:
        start = found.start()
        kind, end = _token(text, start, found[0])
        if kind:
            pieces += text[at:start], hide(kind, text[start:end])
            at = end
        position = end
    return "".join([*pieces, text[at:]]) if pieces else text


def _token(text: str, start: int, prefix: str) -> tuple[str, int]:
    """Return the type and the end of the token that starts here; no type, and where to go on, if there is none."""
    further = start + 1
    while prefix and begins(text, start):
        for kind, pattern in _patterns(prefix) if prefix in _BY_PREFIX else ():
            match = pattern.match(text, start)
            if match is None:
                continue
            if _is_random(prefix, match[0][len(prefix) :]):
                return kind, start + len(match[0].rstrip("."))  # the end of a sentence
            further = match.end()  # no token begins inside of words; to look at each again would take forever
        prefix = prefix[:-1]
    return "", further


def _is_random(prefix: str, tail: str) -> bool:
    """Tell a token from words that happen to begin like one: hf_hub_download, ASIAPACIFICNORTHEAST."""
    if prefix == "ASIA" and tail.isalpha():
        return False
    return _WORDS.fullmatch(tail) is None
