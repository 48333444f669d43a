"""What speaks against a piece that fails without a word of why, over all writes of one sink. See `suspicion`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

import trio

from wal_ingest.flusher.batches import Batch, pick
from wal_ingest.flusher.convictions import CALM_S, Convictions
from wal_ingest.flusher.learnt import Learnt, Pattern
from wal_ingest.flusher.log import NowNs, RunSync
from wal_ingest.flusher.outcome import Confirmed, Misconfigured, Outcome, Unavailable, plain
from wal_ingest.flusher.piece import Piece
from wal_ingest.flusher.shapes import Shape, Shaped, common_shape, shapes_of
from wal_ingest.flusher.suspicion import LEAVE_AFTER, LEAVE_AFTER_COUNTED, Neighbours

# Groups (destinations) of which the latest confirmed write is remembered, to compare a failing one with.
_GROUPS_MAX = 32
# How often a 401, 403 or 404 for a piece must come while the control passes: a batch, then its pieces, and one point.
_DENIED_AFTER = 2
_DENIED_AGAIN_AFTER = 1
# … and one point soon after a control failed: the sink may refuse access now and then, whatever is written.
_DENIED_RESTLESS_AFTER = 4
_FORBIDDEN = 403
# How often the scout and its pieces are divided at once, as long as nothing was confirmed.
SCOUT_AT_ONCE_MAX = 20


@dataclass(slots=True)
class Group:
    """What is known of one destination; `control` is its latest confirmed write, harmless to do again.

    `scouted` says that a batch is divided because nothing passes; `scouted_at_once` is how often that was done.
    """

    neighbours: Neighbours = field(default_factory=Neighbours)
    control: Batch | None = None
    scouted: bool = False
    scouted_at_once: int = 0


class Evidence:
    """One sink's."""

    def __init__(self, learnt: Learnt, *, run_sync: RunSync, now_ns: NowNs) -> None:
        self.convictions = Convictions(learnt)
        self._learnt = learnt
        self._run_sync = run_sync
        self._now_ns = now_ns
        self._groups: OrderedDict[Hashable, Group] = OrderedDict()

    def group(self, batch: Batch) -> Group:
        """What is known of a batch's destination."""
        group = self._groups.setdefault(batch.group, Group())
        self._groups.move_to_end(batch.group)
        if len(self._groups) > _GROUPS_MAX:
            self._groups.popitem(last=False)
        return group

    def note(self, batch: Batch, outcome: Outcome, *, control: bool) -> None:
        """Notes how a write ended; `control` is true for points that had passed before."""
        group = self.group(batch)
        neighbours = group.neighbours
        if isinstance(outcome, Confirmed):
            neighbours.passed += 1
            neighbours.controls_passed += control
            group.scouted = False
            if not control:
                group.control = batch
        elif control and isinstance(outcome, Unavailable | Misconfigured):
            neighbours.controls_failed += 1
            neighbours.control_failed_s = trio.current_time()

    async def is_proven(self, piece: Piece, outcome: Unavailable) -> bool:
        """Whether it is time to divide a piece, or to park it, after one more failure."""
        shape = await self._shape(piece)
        neighbours, now_s = self.group(piece.batch).neighbours, trio.current_time()
        alike = self.convictions.alike(
            piece.batch.group, shape, outcome.reason, outcome.status, neighbours, now_s=now_s
        )
        # Of the batch that is divided because nothing passed, the part that failed once is enough: all others wait.
        if piece.scout or piece.suspicion.counted == LEAVE_AFTER_COUNTED:
            await self._suspect(piece, outcome)
        return piece.suspicion.proven(points=piece.batch.points, alike=alike)

    async def is_denied(self, piece: Piece, outcome: Misconfigured) -> bool:
        """The same for a 401, 403 or 404, each time while a control passed (`Piece.denied`)."""
        shape = await self._shape(piece)
        await self._suspect(piece, outcome)
        known = self.convictions.of_shape(piece.batch.group, shape, outcome.reason, outcome.status)
        again = known or (piece.suspicion.inherited and piece.batch.points > 1)
        if (
            piece.batch.points == 1
            and trio.current_time() < self.group(piece.batch).neighbours.control_failed_s + CALM_S
        ):
            return piece.denied >= _DENIED_RESTLESS_AFTER
        return piece.denied >= (_DENIED_AGAIN_AFTER if again else _DENIED_AFTER)

    async def control_for(self, piece: Piece, control: Batch) -> Batch:
        """A control for one point is one point: as quick to write, and as likely to pass a limit of bytes.

        It is the last one: an earlier one may have been replaced by a point after it.
        """
        if piece.batch.points > 1 or control.points == 1:
            return control
        return await self._run_sync(lambda: pick(control, control.split(), [control.points - 1]))

    # -- shapes -----------------------------------------------------------------------------------------

    async def _shape(self, piece: Piece) -> Shape | None:
        if not piece.shape_known:
            piece.shape = await self._run_sync(lambda: common_shape(piece.batch.split()))
            piece.shape_known = True
        return piece.shape

    async def _suspect(self, piece: Piece, outcome: Unavailable | Misconfigured) -> None:
        """Sets points of the shape apart from now on, if none of it passes, so that the others need not wait."""
        control = self.group(piece.batch).control
        if piece.shape is None or not piece.suspicion.left or control is None or piece.shape in piece.passed:
            return
        pattern = Pattern(piece.batch.group, Shaped(piece.shape))
        if self._learnt.renew(pattern, now_s=trio.current_time()):
            return
        passing = await self._run_sync(lambda: set(shapes_of(control.split())))
        if piece.shape not in passing:
            now_s, now_ns = trio.current_time(), self._now_ns()
            reason = plain(outcome.reason)
            self._learnt.learn(pattern, reason, outcome.status, now_s=now_s, now_ns=now_ns, proven=False)

    # -- where nothing passes ---------------------------------------------------------------------------

    def scouts(self, piece: Piece) -> bool:
        """Whether this is the one batch of its group that is divided without evidence, because nothing passes."""
        if not self._at_once(piece) and not piece.suspicion.may_scout(self.group(piece.batch).neighbours):
            return False
        return self._becomes_scout(piece)

    def scouts_denied(self, piece: Piece, outcome: Misconfigured) -> bool:
        """The same for a 401, 403 or 404 while nothing was confirmed yet that could be a control.

        At once for a 403 only, as firewalls answer: the others are likely about the token or the bucket.
        """
        if self.group(piece.batch).control is not None:
            return False
        at_once = outcome.status == _FORBIDDEN and self._at_once(piece)
        if not at_once and piece.suspicion.failures < LEAVE_AFTER:
            return False
        return self._becomes_scout(piece)

    def _at_once(self, piece: Piece) -> bool:
        """Whether a batch is divided at its first failure: nothing was confirmed yet, so that every one may be bad.

        So many writes find a part that passes where one point in ten is refused. When none does it is likely the
        token, or an outage: few writes from then on.
        """
        group = self.group(piece.batch)
        return group.control is None and group.scouted_at_once < SCOUT_AT_ONCE_MAX

    def _becomes_scout(self, piece: Piece) -> bool:
        group = self.group(piece.batch)
        if piece.batch.points == 1 or (group.scouted and not piece.scout):
            return False
        piece.scout = group.scouted = True
        group.scouted_at_once += 1
        return True
