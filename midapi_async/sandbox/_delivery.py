"""How the callback of one task is sent."""

from attrs import frozen


@frozen
class Delivery:
    """How the callback of one task is sent; the defaults are what the service does."""

    never: bool = False
    early: bool = False
    """Before the submit is answered."""
    acknowledge: bool = False
    """With only the task id first."""
    times: int = 1
    seconds: float = 0.0
    """So much later than the end of the task."""
    like_record: bool | None = None
    """None: for the extension of a video only."""
    failed: bool = False
    """The callback says failure, whatever the record says."""
    urls: tuple[str, ...] | None = None
    """Other URLs than the record's."""
    wrong_signature: bool = False
    age: float = 0.0
    """How old its signature's timestamp is, in real seconds."""
