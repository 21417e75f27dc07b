"""A finished update on its way to the coordinator, until the final word."""

import logging
from dataclasses import dataclass
from pathlib import Path

from edge_client.journal import HeldUpdate, Journal
from edge_client.patience import Patience
from edge_client.transfer import Transfer
from edge_client.work import Work
from headwater.errors import ConflictError, UnavailableError
from headwater.v1 import fleet_pb2
from headwater.v1.fleet_pb2 import OfferRequest, OfferResponse, Receipt

_log = logging.getLogger("headwater.client")
_SHORTEST_WAIT_SECONDS = 0.05


@dataclass(frozen=True)
class FinalWord:
    """How a delivery ended: a ledger state such as accepted, or not needed."""

    state: str
    reason: str


class Delivery:
    """Offers an update, and does what the answer says, for as long as it takes."""

    def __init__(self, transfer: Transfer, journal: Journal, patience: Patience) -> None:
        self._transfer = transfer
        self._journal = journal
        self._patience = patience

    async def deliver(self, work: Work, held: HeldUpdate) -> FinalWord:
        """The coordinator's final word; the update is forgotten then.

        Raises:
            UserError: the coordinator refuses the update for good.
            StorageError: the stored update cannot be read.
        """
        work.activity.enter(fleet_pb2.PHASE_UPLOADING)
        word = None
        while word is None:
            word = await self._patience.call("delivering", lambda: self._attempt(work, held))
        self._journal.drop(held.assignment_id)
        return word

    async def _attempt(self, work: Work, held: HeldUpdate) -> FinalWord | None:
        work.in_call = True
        try:
            answer = await self._transfer.offer(held.offer)
            if answer.verdict == fleet_pb2.OFFER_VERDICT_SEND and held.path is not None:
                return _word_of(await self._send(work, held.offer, held.path, answer.from_byte))
        finally:
            work.in_call = False
        return await self._obey(answer)

    async def _send(self, work: Work, offer: OfferRequest, path: Path, from_byte: int) -> Receipt:
        try:
            return await self._transfer.submit(offer, path, from_byte, work.report_transfer)
        except ConflictError as error:
            # The coordinator has other bytes of it than it said, or another stream: the next offer
            # tells where to go on, or that the update is not needed.
            raise UnavailableError(f"the update is offered again: {error}") from error

    async def _obey(self, answer: OfferResponse) -> FinalWord | None:
        """None where the offer must be repeated."""
        match answer.verdict:
            case fleet_pb2.OFFER_VERDICT_HAVE_IT:
                return _word_of(answer.receipt)
            case fleet_pb2.OFFER_VERDICT_NOT_NEEDED:
                return FinalWord("not needed", answer.reason)
            case fleet_pb2.OFFER_VERDICT_COME_AT:
                _log.info("the update waits for %.1f s: %s", answer.wait_seconds, answer.reason)
                await self._patience.wait(max(answer.wait_seconds, _SHORTEST_WAIT_SECONDS))
                return None
        raise UnavailableError(f"the coordinator answered the offer with {answer.verdict}")


def _word_of(receipt: Receipt) -> FinalWord:
    return FinalWord(receipt.state, receipt.reason)
