"""Charge an order, then write the e-mail: a workflow of two nodes, and two workers in this process to run it."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from pydantic import BaseModel

from spanloom.engine import NodeContext, WorkflowBuilder, WorkflowEngine


class Order(BaseModel):
    id: int
    cents: int


class Bank:
    async def charge(self, cents: int, key: str) -> str:
        return f"{cents / 100:.2f} paid"  # a real bank would take the key, and charge once however often it is asked


@asynccontextmanager
async def clients() -> AsyncGenerator[dict[str, Bank]]:
    yield {"bank": Bank()}  # made once per worker process; handlers find it in ctx.state


orders = WorkflowBuilder("orders", input=Order)


@orders.node(max_attempts=3, timeout=10)
async def charge(order: Order, ctx: NodeContext) -> str:
    receipt: str = await ctx.state.bank.charge(order.cents, key=ctx.idempotency_key)
    return receipt


@orders.node(inputs={"order": orders.input, "receipt": charge})
def email(order: Order, receipt: str) -> str:
    return f"order {order.id}: {receipt}"


engine = WorkflowEngine(
    [orders],
    store=os.environ.get("SPANLOOM_STORE_URL", "sqlite:///orders.db"),
    redis=os.environ.get("SPANLOOM_REDIS_URL", "redis://localhost"),
    lifespan=clients,
)

if __name__ == "__main__":
    with engine, engine.start_workers(2):
        print(engine.start(orders, Order(id=7, cents=990)).result(timeout=30))
