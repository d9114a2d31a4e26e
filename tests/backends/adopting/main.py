"""The FastAPI backend that docs/adopt.md is followed with. It knows nothing of licences."""

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware

app = FastAPI(title="A backend")
app.add_middleware(CORSMiddleware, allow_origins=["https://app.example.com"], allow_methods=["*"], allow_headers=["*"])


@app.get("/health")
async def health():
    return {"status": "ok"}


@app.get("/api/v1/network/devices")
async def list_devices(request: Request):
    return {"devices": [], "tenant": request.headers.get("x-tenant-id"), "scheme": request.url.scheme}


@app.get("/api/v1/crm/customers")
async def list_customers(request: Request):
    return {"customers": [], "tenant": request.headers.get("x-tenant-id"), "client": request.client and request.client.host}


@app.get("/api/v1/tickets")
async def list_tickets():
    return {"tickets": []}


@app.post("/api/v1/tickets", status_code=201)
async def open_ticket():
    return {"ticket": 1}
