"""The control loop: keeps signatures fresh, moves rollouts on, judges drift, runs retraining.

Everything that a step decides is in the store before anything is published, so the loop may be killed at any point.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from cloud_sync.base import Services
from cloud_sync.drift.service import Drift
from cloud_sync.retrain.service import Retrain
from cloud_sync.rollout.controller import Order, RolloutController
from cloud_sync.rollout.service import Rollouts

logger = logging.getLogger(__name__)
_AT_ONCE = 200


def attach(services: Services) -> None:
    """Give the services their rollouts, drift and retraining; the catalog and the signer are there already."""
    settings = services.settings
    services.rollouts = Rollouts(services.db, services.catalog, settings.tenant, settings.rollout)
    services.drift = Drift(services.db, settings.tenant, settings.drift)
    services.retrain = Retrain(
        settings.data,
        services.db,
        services.catalog,
        services.rollouts,
        services.drift,
        tenant=settings.tenant,
        policy=settings.retrain,
    )


async def run(services: Services) -> None:
    """Control until cancelled, every `settings.control_period_s`."""
    if services.rollouts is None:
        attach(services)
    settings = services.settings
    rollouts = RolloutController(services.db, services.catalog, settings.tenant, settings.rollout)
    rollouts.deaf_until(time.time())
    await asyncio.to_thread(services.retrain.recover, time.time())
    worker = asyncio.create_task(_work(services))
    try:
        while True:
            await step(services, rollouts)
            await asyncio.sleep(settings.control_period_s)
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def step(services: Services, rollouts: RolloutController) -> None:
    """Do everything that is due once; one part's failure does not keep the others from their turn."""
    await _try("signatures", services.signer.refresh)
    if not services.link.connected:
        rollouts.deaf_until(time.time())
    orders: list[Order] = await _try("rollouts", rollouts.step) or []
    await publish(services, orders)
    await _try("drift", services.drift.step)
    await _try("retraining", services.retrain.consider)


async def publish(services: Services, orders: list[Order]) -> None:
    """Publish desired states that are in the store; what is lost is published again at the next connection."""
    for number, order in enumerate(orders, 1):
        try:
            await services.link.publish_desired(order.tenant, order.device, order.desired)
        except Exception:
            logger.warning("the desired state of %s is published later", order.device, exc_info=True)
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)


async def _work(services: Services) -> None:
    while True:
        try:
            if await services.retrain.work():
                continue
        except Exception:
            logger.exception("retraining failed, it is looked at again")
        await asyncio.sleep(services.settings.control_period_s)


async def _try(what: str, part: Callable[[float], Any]) -> Any:
    try:
        return await asyncio.to_thread(part, time.time())
    except Exception:
        logger.exception("%s could not be looked after, it is tried again", what)
        return None
