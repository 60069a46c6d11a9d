"""A pull RTSP server for tests, run by the system's Python, which has GStreamer: `python3 rtsp_server.py PORT`.

Mounts: `/main` 640x480 and `/sub` 320x240, H.264, a moving ball at the given rate. With `--user` and `--password` it
asks for them (basic or digest). Prints `ready` once it listens.
"""

import argparse
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

SIZES = {"/main": (640, 480), "/sub": (320, 240)}
LAUNCH = (
    "( videotestsrc is-live=true pattern=ball background-color=0xff404040 ! video/x-raw,width={w},height={h},"
    "framerate={fps}/1 ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 bitrate=400 threads=1 "
    "! rtph264pay name=pay0 pt=96 config-interval=1 )"
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--auth", choices=("basic", "digest"), default="digest")
    args = parser.parse_args()

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(args.port))
    mounts = server.get_mount_points()
    for path, (width, height) in SIZES.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(LAUNCH.format(w=width, h=height, fps=args.fps))
        factory.set_shared(True)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_role("viewer")
        for what in ("media.factory.access", "media.factory.construct"):
            permissions.add_permission_for_role("viewer", what, True)
        factory.set_permissions(permissions)
        mounts.add_factory(path, factory)
    if args.user is not None:
        server.set_auth(authentication(args.user, args.password, args.auth))
    if not server.attach(None):
        sys.stderr.write(f"cannot listen on port {args.port}\n")
        return 1
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    GLib.MainLoop().run()
    return 0


def authentication(user, password, kind):
    """Return an authentication that knows one user."""
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    if kind == "basic":
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    else:
        auth.set_supported_methods(2)
        auth.add_digest(user, password, token)
    return auth


if __name__ == "__main__":
    sys.exit(main())
