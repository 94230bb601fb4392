"""A Redis Cluster of Valkeys from the wheel: three primaries, and replicas where a test asks for them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from redis import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError

from tests.support.waiting import until
from worker.embedded import process
from worker.embedded.valkey import EmbeddedValkey

_SLOTS = 16_384
_PRIMARIES = 3


class ValkeyCluster:
    """Start with `start`, end with `stop`.

    Args:
        home: folder for all nodes.
        replicas: number of replicas of each primary.

    Attributes:
        nodes: the servers by port, the primaries first.
    """

    def __init__(self, home: Path, *, replicas: int = 0) -> None:
        self._home = home
        self._replicas = replicas
        self.nodes: dict[int, EmbeddedValkey] = {}
        self._admins: dict[int, Any] = {}

    async def start(self) -> None:
        """Start the nodes, and wait until each of them knows the whole cluster."""
        settings = {"cluster-enabled": "yes", "cluster-node-timeout": "1000", "cluster-config-file": "nodes.conf"}
        settings |= {"repl-diskless-sync-delay": "0", "enable-debug-command": "yes"}
        buses = {}
        for number in range(_PRIMARIES * (1 + self._replicas)):
            bus = process.free_port()
            node = EmbeddedValkey(self._home, name=f"node{number}", settings={**settings, "cluster-port": str(bus)})
            node.start()
            self.nodes[node.port], buses[node.port] = node, bus
            self._admins[node.port] = Redis(port=node.port)
        first, *others = self.nodes
        for port in others:
            await self.ask(first, "CLUSTER MEET", "127.0.0.1", port, buses[port])
        size = -(-_SLOTS // _PRIMARIES)
        primaries = list(self.nodes)[:_PRIMARIES]
        for number, port in enumerate(primaries):
            last = min((number + 1) * size, _SLOTS) - 1
            await self.ask(port, "CLUSTER ADDSLOTSRANGE", number * size, last)
        await until(self._know_all)
        for number, port in enumerate(list(self.nodes)[_PRIMARIES:]):
            await self.ask(port, "CLUSTER REPLICATE", await self.node_id(primaries[number % _PRIMARIES]))
        await until(self._is_ready)

    async def ask(self, port: int, *command: Any) -> Any:
        """Send a command to a node. It blocks the event loop for its moment, so that each loop can use the cluster."""
        return self._admins[port].execute_command(*command[0].split(), *command[1:])  # without parsing

    @property
    def living(self) -> list[int]:
        """The ports of the nodes that run."""
        return [port for port, node in self.nodes.items() if node.pid is not None]

    def url(self, namespace: str, *, user: str = "") -> str:
        """Return the URL for a worker; the first of its nodes does not exist."""
        nodes = ",".join(f"127.0.0.1:{port}" for port in (1, *self.nodes))
        return f"redis+cluster://{user}{nodes}/?namespace={namespace}"

    async def node_id(self, port: int) -> str:
        """Return the id of a node."""
        found: bytes = await self.ask(port, "CLUSTER MYID")
        return found.decode()

    def slot(self, namespace: str) -> int:
        """Return the slot of a namespace."""
        return int(key_slot(f"{{{namespace}}}:".encode()))

    def is_primary(self, port: int) -> bool:
        """Return whether a node is a primary."""
        info = self._admins[port].info("replication")
        return bool(info["role"] == "master")

    async def owner(self, namespace: str) -> int:
        """Return the port of the primary of a namespace, as its own node sees it."""
        slot = self.slot(namespace)
        for port in self.living:
            [row] = [line for line in await self._rows(port) if "myself" in line[2]]
            ranges = [part.split("-") for part in row[8:] if "[" not in part]
            if "master" in row[2] and any(int(one[0]) <= slot <= int(one[-1]) for one in ranges):
                return port
        return 0

    async def replica_of(self, port: int) -> int:
        """Return the port of a replica of a primary."""
        primary = await self.node_id(port)
        for other in self.living:
            [row] = [line for line in await self._rows(other) if "myself" in line[2]]
            if row[3] == primary:
                return other
        raise AssertionError(f"{port} has no replica")

    async def fail_over(self, namespace: str) -> int:
        """Promote the replica of the owner, once it has all writes. Return the port of the new owner."""
        replica = await self.replica_of(await self.owner(namespace))
        await self.ask(replica, "CLUSTER FAILOVER")

        async def is_promoted() -> bool:
            return await self.owner(namespace) == replica

        await until(is_promoted)
        return replica

    async def kill_owner(self, namespace: str) -> int:
        """Kill the owner once its replica has all writes, and wait until the replica is promoted. Return its port."""
        owner = await self.owner(namespace)
        replica = await self.replica_of(owner)
        # The replica must not miss a write that was acknowledged: replication is asynchronous.
        await self.ask(owner, "CLIENT PAUSE", 60_000, "WRITE")

        async def has_all() -> bool:
            source, copy = [self._admins[port].info("replication") for port in (owner, replica)]
            return bool(source["master_repl_offset"] == copy["slave_repl_offset"])

        await until(has_all)
        self.nodes[owner].stop(immediate=True)

        async def is_promoted() -> bool:
            return await self.owner(namespace) == replica

        await until(is_promoted)
        return replica

    async def begin_move(self, namespace: str, target: int) -> int:
        """Begin to move the slot of a namespace to another node. Return the port of the owner."""
        slot, source = self.slot(namespace), await self.owner(namespace)
        await self.ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", await self.node_id(source))
        await self.ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", await self.node_id(target))
        return source

    async def end_move(self, namespace: str, source: int, target: int) -> None:
        """Move the keys one by one, and then the slot."""
        slot = self.slot(namespace)
        while names := await self.ask(source, "CLUSTER GETKEYSINSLOT", slot, 1):
            await self.ask(source, "MIGRATE", "127.0.0.1", target, names[0], 0, 5000)
            await asyncio.sleep(0.001)
        for port in dict.fromkeys((target, source, *filter(self.is_primary, self.living))):
            await self.ask(port, "CLUSTER SETSLOT", slot, "NODE", await self.node_id(target))

    def stop(self) -> None:
        """End all nodes."""
        for admin in self._admins.values():
            admin.close()
        for node in self.nodes.values():
            node.stop(immediate=True)

    async def _rows(self, port: int) -> list[list[str]]:
        raw: bytes = await self.ask(port, "CLUSTER NODES")
        return [line.split(" ") for line in raw.decode().splitlines()]

    async def _know_all(self) -> bool:
        return all([len(await self._rows(port)) == len(self.nodes) for port in self.nodes])

    async def _is_ready(self) -> bool:
        """Return whether each node serves the cluster, and each replica has its data."""
        try:
            for port in self.nodes:
                info = self._admins[port].info("replication")
                rows = await self._rows(port)
                replicas = [row for row in rows if "slave" in row[2]]
                is_served = b"cluster_state:ok" in await self.ask(port, "CLUSTER INFO")
                is_linked = info["role"] == "master" or info["master_link_status"] == "up"
                if len(replicas) != len(self.nodes) - _PRIMARIES or not is_served or not is_linked:
                    return False
        except RedisError:
            return False
        return True
