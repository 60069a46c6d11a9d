"""How an ffmpeg process is told an address that no list of processes shows; standard library only."""

from __future__ import annotations

from urllib.parse import urlsplit

from edge_sdk.errors import UsageError
from edge_sdk.sources.uri import redact

PROTOCOLS = "pipe,file,rtsp,rtsps,rtp,rtmp,rtmps,srt,tcp,udp,tls,http,https,httpproxy,hls,crypto"


def address_script(address: str, transport: str) -> bytes:
    """Return the ffconcat script that names one address: what is read from a pipe is in no list of processes.

    Raises:
        UsageError: the address holds a line break.
    """
    if any(c in address for c in "\r\n\0"):
        raise UsageError(f"`{redact(address)!r}` is no valid address", hint="it holds a line break")
    quoted = address.replace("'", "'\\''")
    lines = ["ffconcat version 1.0", f"file '{quoted}'"]
    if urlsplit(address).scheme.startswith("rtsp"):
        lines.append(f"option rtsp_transport {transport}")
    return ("\n".join(lines) + "\n").encode()
