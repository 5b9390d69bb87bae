"""Reads the address of Redis: one server, a cluster, or a primary that Sentinels know.

One server is written as every client of Redis takes it. For several servers there is no standard; the forms here,
`redis+cluster://` and `redis+sentinel://`, are those of other Python libraries (`limits`, say).
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode

_CLUSTER_PORT: Final = 6_379
_SENTINEL_PORT: Final = 26_379
_PORT_MAX: Final = 65_535

_FORM: Final = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>cluster|sentinel)://"
    r"(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^/?#@]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)
_ONE_FORM: Final = re.compile(r"(?:unix://|rediss?://(?:[^/?#]*@)?(?P<host>[^/?#]*)).*", re.DOTALL)
_HOST: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+)(?::(?P<port>\d+))?")
_HOW_TO_BEGIN: Final = (
    "must begin with redis://, rediss:// or unix:// (one server), redis+cluster:// or rediss+cluster:// (a cluster), "
    "or redis+sentinel:// or rediss+sentinel:// (a primary that Sentinels know)"
)


class Kind(StrEnum):
    """What stands behind an address."""

    ONE = "one"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


class Node(NamedTuple):
    """Where one server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """An address, read. `nodes` are those that it names: of a cluster, or the Sentinels; of one server none."""

    kind: Kind
    nodes: tuple[Node, ...]
    # As the Sentinels call the primary.
    primary_name: str
    _scheme: str
    _user: str
    # The whole address where it is one server's; else what follows the servers' names.
    _rest: str
    _sentinels_user: str

    @classmethod
    def of(cls, url: str) -> Self:
        """Read an address. Raises `ValueError` with a sentence that says what is allowed, and repeats no secret."""
        if one := _ONE_FORM.fullmatch(url):
            if "," in (one["host"] or ""):
                message = "names several servers: begin it with redis+cluster:// or redis+sentinel://"
                raise ValueError(message)
            return cls(Kind.ONE, (), "", "", "", url, "")
        form = _FORM.fullmatch(url)
        if form is None:
            raise ValueError(_HOW_TO_BEGIN)
        kind = Kind(form["kind"])
        nodes = tuple(_node(part, kind) for part in form["hosts"].split(","))
        name, database = _path_of(kind, form["path"] or "")
        options = dict(parse_qsl(form["query"] or ""))
        sentinels_user = ""
        if password := options.pop("sentinel_password", ""):
            sentinels_user = f"{quote(options.pop('sentinel_username', ''), safe='')}:{quote(password, safe='')}@"
        user = f"{form['user']}@" if form["user"] else ""
        rest = f"/{database}" + (f"?{urlencode(options)}" if options else "")
        return cls(kind, nodes, name, form["scheme"], user, rest, sentinels_user)

    @property
    def where(self) -> str:
        """Return for people where several servers are looked for, never with the password."""
        names = ", ".join(map(str, self.nodes))
        return f"{self.primary_name}, which {names} know," if self.kind is Kind.SENTINEL else names

    def url_of(self, node: Node | None) -> str:
        """Return the address of one server that keeps data, as redis-py reads it. None: of the only one."""
        if node is None:
            return self._rest
        return f"{self._scheme}://{self._user}{node}{self._rest}"

    def url_of_sentinel(self, node: Node) -> str:
        """Return the address of one of the Sentinels: with a password of its own, if with any, and no database."""
        _, mark, options = self._rest.partition("?")
        return f"{self._scheme}://{self._sentinels_user}{node}{mark}{options}"


def _node(text: str, kind: Kind) -> Node:
    form = _HOST.fullmatch(text)
    port = int(form["port"] or (_CLUSTER_PORT if kind is Kind.CLUSTER else _SENTINEL_PORT)) if form else 0
    if form is None or not 0 < port <= _PORT_MAX:
        message = f"must name servers as HOST:PORT, separated by commas: redis+{kind}://host1:7000,host2:7000"
        raise ValueError(message)
    return Node(unquote(form["host"]).strip("[]"), port)


def _path_of(kind: Kind, path: str) -> tuple[str, str]:
    """Return the primary's name and the number of the database."""
    name, _, database = ("", "", path.strip("/")) if kind is Kind.CLUSTER else path.strip("/").partition("/")
    if kind is Kind.CLUSTER and database not in {"", "0"}:
        message = "names a database, and a cluster has one only: leave out what follows the servers"
        raise ValueError(message)
    if kind is Kind.SENTINEL and not name:
        message = "must name the primary as the Sentinels do: redis+sentinel://host1:26379,host2:26379/NAME"
        raise ValueError(message)
    if not (database or "0").isdecimal():
        message = "must end with the primary's name, or that and the number of a database: …/NAME/0"
        raise ValueError(message)
    return unquote(name), database or "0"
