"""The HTTP routes, one module an area; each has `router(services) -> APIRouter`."""
