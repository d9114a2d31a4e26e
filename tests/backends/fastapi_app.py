"""A backend shaped like DotMac: core modules, modules sold per plan, and the prefixes of older clients.

It knows nothing of licences. Every answer says which module gave it and which headers it saw.
"""

from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel

CORE = ["network", "billing", "auth", "licensing"]
SOLD = ["crm", "tickets", "projects", "fieldops", "analytics"]
# An older prefix, and the module that answers under it.
OLDER = {"support": "tickets", "field-operations": "fieldops"}


class Item(BaseModel):
    name: str
    quantity: int = 1


def saw(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.startswith("x-")}


def module(name: str) -> APIRouter:
    router = APIRouter()

    @router.get("/items")
    async def list_items(request: Request, page: int = 1):
        return {"module": name, "page": page, "saw": saw(request)}

    @router.post("/items", status_code=201)
    async def create_item(item: Item, request: Request):
        return {"module": name, "item": item, "saw": saw(request)}

    @router.get("/items/{item_id}")
    async def get_item(item_id: int, request: Request):
        return {"module": name, "item_id": item_id, "saw": saw(request)}

    @router.delete("/items/{item_id}", status_code=204)
    async def delete_item(item_id: int):
        return None

    return router


app = FastAPI(title="DotMac-shaped backend", version="1")

for prefix in [*CORE, *SOLD, *OLDER]:
    app.include_router(module(OLDER.get(prefix, prefix)), prefix=f"/api/v1/{prefix}", tags=[prefix])


@app.post("/api/v1/customers/{customer_id}/tickets", status_code=201, tags=["customers"])
async def open_ticket(customer_id: str, item: Item, request: Request):
    return {"module": "tickets", "customer": customer_id, "item": item, "saw": saw(request)}
