"""Gives locust the clients and the shape of the plan in the directory LOADTEST_DIRECTORY.

`redeem loadtest run` starts it. To use locust's own web page, start ``locust -f loadtest/locustfile.py``
in the same environment.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import gevent
from locust import events
from locust.runners import MasterRunner

from loadtest import users
from loadtest.answers import Writer
from loadtest.api import Api
from loadtest.clients import CROWDS
from loadtest.codes import Codes
from loadtest.scenarios import read_plan

if TYPE_CHECKING:
    from locust.env import Environment

DIRECTORY: Final = Path(os.environ["LOADTEST_DIRECTORY"])
KEY: Final = os.environ["LOADTEST_KEY"]
PAGE_KEY: Final = os.environ.get("LOADTEST_PAGE_KEY", "")
PLAN: Final = read_plan(DIRECTORY)

# Locust finds the classes in this module by name.
PlannedShape, clients = CROWDS[PLAN.scenario]
globals().update({kind.__name__: kind for kind in clients})
PlannedShape.plan = PLAN


@events.init.add_listener  # type: ignore[untyped-decorator] # locust's
def _ready(environment: Environment, **_: Any) -> None:  # noqa: ANN401 - locust's signature
    """Mint the codes of this process. A locust master has no clients and needs none."""
    if isinstance(environment.runner, MasterRunner):
        return
    run = users.Run(
        plan=PLAN,
        key=KEY,
        page_key=PAGE_KEY,
        codes=Codes(Api(PLAN.url, KEY), PLAN, gevent.spawn),
        answers=Writer(DIRECTORY),
        numbers=itertools.count(),
        process=str(os.getpid()),
    )
    users.bind(environment, run)
