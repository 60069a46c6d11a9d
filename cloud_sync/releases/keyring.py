"""Private keys of TUF roles as PEM files, some of which may be kept in another folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

from cloud_sync.files import atomic_write
from edge_sdk.errors import TrustError

OFFLINE = ("root", "targets")


class Keyring:
    """Keys named `<role>-<keyid>.pem` (PKCS8, mode 0600) in `folder`; those of offline roles are made in `offline`."""

    def __init__(self, folder: Path, offline: Path | None = None) -> None:
        self.folder = folder
        self.offline = offline or folder

    def new(self, role: str) -> CryptoSigner:
        """Make an Ed25519 key and store it."""
        signer = CryptoSigner.generate_ed25519()
        folder = self.offline if role in OFFLINE else self.folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(folder / f"{role}-{signer.public_key.keyid}.pem", signer.private_bytes, mode=0o600)
        return signer

    def has(self, keyid: str) -> bool:
        return bool(self._files(keyid))

    def remove(self, keyid: str) -> None:
        for path in self._files(keyid):
            path.unlink()

    def signers(self, keyids: Sequence[str], role: str) -> list[CryptoSigner]:
        """Return the private keys of a role.

        Raises:
            TrustError: one is in neither folder, or its file is damaged.
        """
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        out = []
        for keyid in keyids:
            files = self._files(keyid)
            if not files:
                raise TrustError(
                    f"the key {keyid[:16]} of role `{role}` is not in {self.offline}",
                    hint="name the folder in which it is kept with `edge trust … --keys DIR`",
                )
            try:
                signer = CryptoSigner(load_pem_private_key(files[0].read_bytes(), None))
            except (OSError, ValueError, TypeError) as error:
                raise TrustError(f"cannot read the key {files[0]}: {error}", hint="restore it from a backup") from None
            if signer.public_key.keyid != keyid:
                raise TrustError(f"{files[0]} is not the key that its name says", hint="restore it from a backup")
            out.append(signer)
        return out

    def _files(self, keyid: str) -> list[Path]:
        return [p for folder in dict.fromkeys((self.folder, self.offline)) for p in folder.glob(f"*-{keyid}.pem")]
