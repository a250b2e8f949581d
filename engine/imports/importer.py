"""Takes a file of codes: starts a new import, or continues an unfinished one.

The Idempotency-Key of the request says which import a file belongs to. Without a key, the beginning of the
file does. The part that was read before must be the same, byte for byte. It is skipped, and ``runner`` reads
the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncpg

from engine.codes.digests import Digester, file_mac
from engine.control import batches, campaigns, mint_key_checks
from engine.control.change import try_publish
from engine.control.idempotency import bind_to_imports, import_digest
from engine.errors import Fault, Overloaded, Refusal, StoreUnavailable
from engine.imports import records
from engine.imports.chunks import Chunk, MintedCodes
from engine.imports.index import ImportIndex
from engine.imports.parser import CodeLines, Form
from engine.imports.runner import ImportOutcome, ImportRun
from engine.queries import queries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from engine.control.change import ControlPlane
    from engine.imports.records import Import

HEAD_BYTES: Final = 1024  # the file of an unfinished import is recognised by this many first bytes
_ENDS: Final = frozenset({"malformed_request", "unauthenticated"})
"""A refusal with one of these codes ends an import of which no line was written."""
_FORGED: Final = "content_digest_mismatch"
_SQL: Final = queries(__package__, "imports")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file to import. ``key``: the Idempotency-Key, if the caller has given one."""

    campaign: str
    form: Form
    source: AsyncIterator[bytes]
    created_by: str
    key: str | None = None


class Importer:
    """Runs the imports of one process, at most ``imports_max`` at a time. One of them writes at a time."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._turn = asyncio.Lock()
        self._running = 0

    async def run(self, upload: Upload, on_progress: Callable[[Import], None] | None = None) -> ImportOutcome:
        """Import a file, or continue its import where it stopped.

        With a key, this continues the import with the key. Without a key, it continues an unfinished import
        of the campaign whose file has the same beginning. If there is none, it starts a new import.

        Raises:
            Refusal: ``campaign_not_found``, ``campaign_ended``, ``malformed_request``;
                ``idempotency_key_reused``: another file came with the key before; ``import_conflict``:
                the file differs from the unfinished one after its beginning, or another call continues
                this import; ``unauthenticated``: the caller's key was revoked meanwhile;
                ``content_digest_mismatch``: the file is not the one that was signed, and its import is
                discarded.
            Overloaded: ``imports_max`` imports run.
            StoreUnavailable: a server cannot be used. What is written stays; the next call continues there.
        """
        if self._running >= self._plane.settings.imports_max:
            raise Overloaded(f"{self._running} imports run, which is the limit")
        self._running += 1
        try:
            return await self._run(upload, on_progress)
        finally:
            self._running -= 1

    async def _run(self, upload: Upload, on_progress: Callable[[Import], None] | None) -> ImportOutcome:
        keys = batches.load_mint_keys(self._plane.settings)
        head = bytearray()
        async for data in upload.source:
            head += data
            if len(head) >= HEAD_BYTES:
                break
        imported = await self._begin(upload, bytes(head), keys.by_name, keys.current)
        try:
            return await self._continue(imported, upload, bytes(head), keys.by_name, on_progress)
        except Refusal as refusal:
            if refusal.code in _ENDS:
                with contextlib.suppress(Fault):  # the refusal is the answer
                    await records.refuse(self._plane, imported, refusal.detail or refusal.code)
            elif refusal.code == _FORGED:
                with contextlib.suppress(Fault, Refusal):  # one that is finished stays
                    await records.discard(self._plane, imported.name, actor=upload.created_by)
            raise

    async def _continue(
        self,
        imported: Import,
        upload: Upload,
        head: bytes,
        mint_keys: Mapping[str, bytes],
        on_progress: Callable[[Import], None] | None,
    ) -> ImportOutcome:
        """Skip what was imported before, and import the rest. ``head`` is what was read of the file."""
        if imported.mint_key not in mint_keys:
            raise StoreUnavailable(f"the mint key {imported.mint_key} of {imported.name} is not known here")
        lines = CodeLines(
            upload.form,
            file_mac(mint_keys[imported.mint_key]),
            self._plane.settings,
            line=imported.line,
            columns=imported.columns,
            column=imported.code_column,
        )
        rest = await self._skip(upload, lines, imported, head)
        if imported.state == "finished":
            if rest or await anext(upload.source, b""):
                raise _other_file(upload, imported)
            return ImportOutcome(imported, replayed=True, published=await try_publish(self._plane))
        async with self._prepared(imported, lines, mint_keys, upload.created_by) as run:
            await run.take(rest)
            async for data in upload.source:
                await run.take(data)
                if on_progress:
                    on_progress(run.imported)
            return await run.finish()

    async def _begin(
        self, upload: Upload, head: bytes, mint_keys: Mapping[str, bytes], current_key: str
    ) -> Import:
        """Return the import to continue, or a new one."""
        if not head:
            raise Refusal("malformed_request", "The body is empty: there is nothing to import.")
        heads = {name: _head(key, upload.form, head[:HEAD_BYTES]) for name, key in mint_keys.items()}
        key_digest = None
        if upload.key is not None:
            key_digest = import_digest(upload.created_by, upload.key)
        try:
            async with self._plane.database.transaction() as connection:
                await mint_key_checks.require_same(connection, mint_keys)
                campaign = await campaigns.find(connection, upload.campaign)
                if key_digest:
                    row = await connection.fetchrow(_SQL["by_key"], key_digest)
                else:
                    row = await connection.fetchrow(_SQL["by_head"], upload.campaign, list(heads.values()))
                if row and (row["campaign"], row["form"]) != (upload.campaign, upload.form):
                    raise Refusal("idempotency_key_reused")
                if campaign.state == "ended" and not (row and row["state"] == "finished"):
                    raise Refusal("campaign_ended", "The campaign has ended: it gets no more codes.")
                if row is None:
                    await mint_key_checks.use(connection, current_key, mint_keys)
                    row = await connection.fetchrow(
                        _SQL["insert"],
                        upload.campaign,
                        upload.form,
                        current_key,
                        key_digest,
                        heads[current_key],
                        upload.created_by,
                    )
                    if row is not None and upload.key is not None:
                        await bind_to_imports(self._plane.redis, connection, upload.created_by, upload.key)
        except asyncpg.UniqueViolationError:
            row = None
        if row is None:
            raise Refusal("import_conflict", "Another call started the same import just now; send it again.")
        return records.from_row(row)

    async def _skip(self, upload: Upload, lines: CodeLines, imported: Import, data: bytes) -> bytes:
        """Skip what was imported before; check that it is the same. Return what was read after it."""
        while lines.bytes + len(data) < imported.bytes:
            lines.skip(data)
            data = await anext(upload.source, b"")
            if not data:
                raise _other_file(upload, imported)
        cut = imported.bytes - lines.bytes
        lines.skip(data[:cut])
        if imported.mac is not None and lines.mac.digest() != imported.mac:
            raise _other_file(upload, imported)
        return data[cut:]

    @contextlib.asynccontextmanager
    async def _prepared(
        self, imported: Import, lines: CodeLines, mint_keys: Mapping[str, bytes], caller: str
    ) -> AsyncIterator[ImportRun]:
        async with self._plane.database.connection() as connection:
            minted = await MintedCodes.load(connection, self._plane)
            names = [row["mint_key"] for row in await connection.fetch(_SQL["mint_keys"])]
            shards = await connection.fetchval(_SQL["shards"])
        missing = {*names, *minted.missing} - mint_keys.keys()
        if missing:
            raise StoreUnavailable(
                f"the mint keys {', '.join(sorted(missing))} are missing: they are needed to find duplicates"
            )
        others = [Digester(mint_keys[name]) for name in names if name != imported.mint_key]
        chunk = Chunk(Digester(mint_keys[imported.mint_key]), others, minted)
        async with ImportIndex(self._plane.settings, shards) as index:
            run = ImportRun(
                self._plane, imported, turn=self._turn, lines=lines, chunk=chunk, index=index, caller=caller
            )
            await run.repair_index()
            try:
                yield run
            finally:
                await run.close()


def _head(mint_key: bytes, form: Form, head: bytes) -> bytes:
    mac = file_mac(mint_key)
    mac.update(form.encode() + b"\0" + head)
    return mac.digest()


def _other_file(upload: Upload, imported: Import) -> Refusal:
    if upload.key is not None:
        return Refusal("idempotency_key_reused", "Another file was imported with this Idempotency-Key.")
    return Refusal(
        "import_conflict",
        f"{imported.name} is not finished. Its file has the same beginning as this one, but then differs."
        " Finish or discard it first, or send an Idempotency-Key.",
    )
