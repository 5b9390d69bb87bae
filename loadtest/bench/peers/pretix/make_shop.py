"""Makes a shop in a fresh pretix: run by pretix's own Python, with pretix's settings in the environment.

Standard input: JSON with `pools` (ids) and `places` (in each). Standard output: JSON with the `token` of the API and,
for each pool, the number of the `items` that stands for it.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# What is imported here is installed in another environment than the one that is checked.

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "pretix.settings")
django.setup()

from django.db import transaction  # noqa: E402 - Django wants to be set up first
from django_scopes import scopes_disabled  # noqa: E402 - as above
from pretix.base.models import Event, Organizer  # noqa: E402 - as above


def make_shop(pools: list[str], places: int) -> dict[str, object]:
    """Make an organizer, an event that sells, and for each pool a free item with a quota; return how to order."""
    organizer = Organizer.objects.create(name="Town", slug="town")
    team = organizer.teams.create(
        name="Everybody", all_events=True, all_event_permissions=True, all_organizer_permissions=True
    )
    token = team.tokens.create(name="Town")
    now = datetime.now(UTC)
    event = Event.objects.create(
        organizer=organizer,
        name="Courses",
        slug="courses",
        currency="CNY",
        plugins="pretix.plugins.sendmail,pretix.plugins.statistics,pretix.plugins.checkinlists",
        date_from=now + timedelta(days=14),
        presale_start=now - timedelta(days=1),
        live=True,
    )
    event.set_defaults()
    items: dict[str, int] = {}
    for pool in pools:
        item = event.items.create(name=pool, default_price=Decimal(0), admission=True)
        quota = event.quotas.create(name=pool, size=places)
        quota.items.add(item)
        items[pool] = item.pk
    return {"token": token.token, "items": items}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    with scopes_disabled(), transaction.atomic():
        made = make_shop(asked["pools"], asked["places"])
    json.dump(made, sys.stdout)
