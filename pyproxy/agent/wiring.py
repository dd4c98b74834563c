"""The commands run, init-only and cleanup: an agent wired from its settings."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any, Protocol

from pyproxy import logs
from pyproxy.agent import (
    descriptors,
    mode_cleanup,
    node_setup,
    rights,
    supervise,
)
from pyproxy.agent.address_watcher import AddressWatcher
from pyproxy.agent.affinity_refusals import AffinityRefusals
from pyproxy.agent.backoff import SyncBackoff
from pyproxy.agent.commit import CommitListener, Observers
from pyproxy.agent.config_checks import ConfigChecks, ConfigProblemCollector
from pyproxy.agent.config_file import ConfigFile
from pyproxy.agent.core import Agent
from pyproxy.agent.listeners import Flows, HealthChecks, KernelCounts, LocalCounts
from pyproxy.agent.loop import (
    AddressesChanged,
    Chores,
    Inbox,
    Loop,
    Stop,
    watch_devices,
    watch_drift,
)
from pyproxy.agent.node import NodeRules
from pyproxy.agent.node_addresses import LocalAddresses
from pyproxy.agent.node_wait import FirstCommit
from pyproxy.agent.preflight import Preflight
from pyproxy.agent.queries import About, AgentInspector, ProgrammedState
from pyproxy.agent.shutdown import ShutdownSignal
from pyproxy.agent.sources import Source, client_of, servers_of, source_of
from pyproxy.agent.table_usage import TableUsageCollector
from pyproxy.agent.takeover import Takeover, remove_leftovers
from pyproxy.config import feature_gates
from pyproxy.config.settings import Settings
from pyproxy.dataplane import modes
from pyproxy.dataplane.conntrack import Reconciler
from pyproxy.dataplane.interface import Dataplane
from pyproxy.dataplane.mode import Capability
from pyproxy.errors import PermissionKernelError, Problem, UsageError
from pyproxy.health.connection_metrics import ConnectionMetrics
from pyproxy.health.limits import within
from pyproxy.health.server import HealthServers
from pyproxy.health.service_health import ListenOptions, ServiceHealthServer
from pyproxy.health.state import Health
from pyproxy.inspect.server import InspectServer
from pyproxy.inspect.turns import Turns
from pyproxy.metrics import Metrics
from pyproxy.netlink.address_monitor import LocalAddressMonitor
from pyproxy.netlink.conntrack import Conntrack
from pyproxy.source.client import Client
from pyproxy.source.event_recorder import EventRecorder
from pyproxy.takeover.leftovers import InService

log = logging.getLogger(__name__)

_PERIODIC_SECONDS = 2.0
"""An idle agent wakes as rarely as what it polls allows: files, sysctls, legacy tables, IPVS."""
_PREFLIGHT_VERBOSITY = 2  # klog's convention for what an operator needs
_MODES = "modes that this machine can serve in: %s"


def run(
    settings: Settings, read: Callable[[], Settings], shutdown: ShutdownSignal
) -> Settings | None:
    """Proxy this node's Services until SIGTERM or SIGINT, and leave the rules in the kernel.

    Return None after a signal. After a change of the configuration file, return the settings of the
    next run, which `read` made of it. Raises UsageError, and PermissionKernelError if a right was
    removed meanwhile.
    """

    def read_and_check() -> Settings:
        found = read()
        if found != settings:
            # An unusable API server configuration must not end the present run.
            client_of(found, None)
        return found

    started = time.monotonic()
    config_file = ConfigFile(settings, read_and_check)
    with _dataplane(settings) as dataplane:
        _serve(settings, dataplane, config_file, shutdown, started)
    return config_file.successor


def _serve(
    settings: Settings,
    dataplane: Dataplane[Any],
    config_file: ConfigFile,
    shutdown: ShutdownSignal,
    started: float,
) -> None:
    # Contexts exit in reverse order: the source stops first, and the health ports respond until the
    # other parts have stopped.
    with ExitStack() as stack:
        metrics = _metrics(settings)
        health = Health(settings.pace.sync_period)
        stack.enter_context(supervise.reporting_failures(health, metrics))
        inbox, client = Inbox(), client_of(settings, metrics.api)
        source = source_of(settings, client, inbox.put)
        config_checks = _source_metrics(settings, source, client, metrics, config_file)
        recorder = EventRecorder(client, settings.node_name, metrics.api) if client else None

        def report(problem: Problem) -> None:
            # ProblemTracker has logged it already.
            if recorder is not None:
                recorder.record_problem(
                    problem, agent.cluster_state.uid(problem.kind, problem.name)
                )

        def shut_down() -> None:
            health.set_shutting_down()
            inbox.put(Stop())

        servers, checks = _health_servers(settings, health, metrics, report)
        flows = stack.enter_context(closing(Conntrack()))
        local = stack.enter_context(closing(LocalAddresses()))
        refusals = _kernel_metrics(dataplane, metrics, report)
        reconciler, programmed = Reconciler(flows, metrics.kernel), ProgrammedState()
        # Some settings need capabilities that the agent drops later.
        machine = stack.enter_context(closing(prepare_kernel(settings)))
        node_rules = NodeRules(
            settings,
            local.read,
            local.broadcasts,
            partial(servers_of, client),
            local.large_networks,
            dataplane.families,
        )
        listeners: list[CommitListener] = [
            FirstCommit(
                dataplane.name, node_rules.wait, settings.node_name, started, time.monotonic
            ),
            config_checks,
            Flows(reconciler),
            HealthChecks(checks, settings.node_name),
            LocalCounts(metrics.syncs),
            KernelCounts(metrics.kernel, dataplane),
            programmed,
            Takeover(
                metrics.syncs,
                dataplane,
                machine.leftovers_removed,
                of_kube_proxy=settings.takeover,
            ),
        ]
        agent = Agent(
            dataplane,
            node_rules,
            SyncBackoff(settings.pace.min_sync_period),
            Observers(metrics, health, listeners, time.monotonic, time.time, report),
        )
        addresses = AddressWatcher(
            stack.enter_context(closing(LocalAddressMonitor(lambda: local.service_devices))),
            partial(inbox.put, AddressesChanged()),
        )
        # A thread inherits the capabilities of the thread that starts it, so no thread runs before.
        rights.keep_only(rights.needed(settings, rights.needed_to_remove()))
        dataplane.read_ahead()
        shutdown.on_shutdown(shut_down)
        stack.enter_context(_running(servers))
        stack.enter_context(_running(reconciler))
        if recorder is not None:
            stack.enter_context(_recording(recorder))
        about = About(
            settings,
            client,
            health,
            source.age,
            time.time,
            time.time(),
            dataplane.table_usage,
            config_checks.problems,
            dataplane.flow_offload,
        )
        stack.enter_context(
            _inspectable(AgentInspector(agent, programmed, about, inbox.put), settings)
        )
        _watch_kernel(dataplane, inbox)
        stack.enter_context(_running(addresses))
        log.info("reading the lists for node %s in %s mode", settings.node_name, dataplane.name)
        stack.enter_context(_running(source))

        def periodic() -> None:
            if _look_at_files(config_file, client):
                inbox.put(Stop())
            machine.keep(settings)
            refusals.check()
            agent.tick()
            agent.audit()
            config_checks.check(agent.cluster_state, agent.node_routing)
            logs.LIMITER.report()
            if agent.api_servers != servers_of(client):
                agent.addresses_changed()

        Loop(agent, inbox, Chores(periodic, _PERIODIC_SECONDS, checks.retry), health).run()
        log.info("shutting down; the rules stay")


def _watch_kernel(dataplane: Dataplane[Any], inbox: Inbox) -> None:
    watch_drift(dataplane, inbox.put)
    watch_devices(dataplane, inbox.put)


def _look_at_files(config_file: ConfigFile, client: Client | None) -> bool:
    """Follow changed credentials, and return whether the configuration has changed."""
    if client is not None:
        client.follow_files()
    return config_file.has_changed()


def _source_metrics(
    settings: Settings,
    source: Source,
    client: Client | None,
    metrics: Metrics,
    config_file: ConfigFile,
) -> ConfigChecks:
    config_checks = ConfigChecks(settings, source, client, config_file.problems)
    metrics.process.source_age(source.age)
    metrics.register(ConfigProblemCollector(config_checks.problems))
    return config_checks


def _kernel_metrics(
    dataplane: Dataplane[Any], metrics: Metrics, report: Callable[[Problem], None]
) -> AffinityRefusals:
    refusals = AffinityRefusals(dataplane.refused_clients, report, time.monotonic)
    metrics.register(dataplane)
    metrics.register(TableUsageCollector(dataplane.table_usage))
    metrics.register(refusals)
    return refusals


def _health_servers(
    settings: Settings, health: Health, metrics: Metrics, report: Callable[[Problem], None]
) -> tuple[HealthServers, ServiceHealthServer]:
    limits = within(descriptors.raise_limit())
    serving = settings.serving
    own = (serving.health, serving.metrics, settings.ui)
    options = ListenOptions(
        limits.listeners,
        everywhere=settings.node_ports.everywhere_in,
        own_ports=frozenset(place.port for place in own if place is not None),
    )
    servers = HealthServers(settings, health, metrics, limits)
    checks = ServiceHealthServer(servers.http, options, health.is_healthy, report)
    metrics.register(ConnectionMetrics(servers.threads, checks.incomplete_ports))
    return servers, checks


def _metrics(settings: Settings) -> Metrics:
    names = modes.of(settings.mode).failure_names
    metrics = Metrics(sync_failures=names.sync, cleanup_failures=names.cleanup)
    metrics.process.suppressed_log_lines(lambda: logs.LIMITER.suppressed)
    for gate in feature_gates.states(settings.configuration.feature_gates.items()):
        metrics.process.feature(gate.name, gate.stage, enabled=gate.enabled)
    return metrics


@contextmanager
def _inspectable(inspector: AgentInspector, settings: Settings) -> Iterator[None]:
    # One for socket and page: their askers compute in the same process.
    turns = Turns()
    with ExitStack() as stack:
        stack.enter_context(_running(InspectServer(settings.inspect_socket, inspector, turns)))
        if settings.ui is not None:
            # Imports a template engine, which an agent without a page does without.
            from pyproxy.ui.server import PageServer  # noqa: PLC0415

            counters = partial(modes.of(settings.mode).counters, settings)
            counted = settings.nftables.endpoint_counters
            page = PageServer(settings.ui, inspector, turns, counters if counted else None)
            stack.enter_context(_running(page))
        yield


class _Startable(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...


@contextmanager
def _recording(recorder: EventRecorder) -> Iterator[None]:
    recorder.record_start()
    with _running(recorder):
        yield


@contextmanager
def _running(worker: _Startable) -> Iterator[None]:
    worker.start()
    try:
        yield
    finally:
        worker.stop()


@contextmanager
def _dataplane(settings: Settings) -> Iterator[Dataplane[Any]]:
    if settings.verbosity >= _PREFLIGHT_VERBOSITY:
        log.info(_MODES, Preflight())
    with ExitStack() as stack:
        node_setup.load_modules(settings)
        try:
            dataplane = stack.enter_context(closing(modes.of(settings.mode).make(settings)))
            dataplane.prepare()
        except UsageError as error:
            raise UsageError(f"{error}; {_MODES % Preflight()}") from error
        yield dataplane


def prepare_kernel(settings: Settings) -> node_setup.NodeKernel:
    """Write the kernel settings that the proxy needs, as far as they are allowed."""
    kernel = node_setup.NodeKernel(node_setup.open_node_table())
    kernel.apply(settings)
    kernel.prepare_loopback(settings.node_ports)
    return kernel


def initialize(settings: Settings) -> int:
    """Do what needs more rights than serving, so that the agent may run with fewer."""
    node_setup.load_modules(settings)
    prepare_kernel(settings).close()
    return 0


def cleanup(settings: Settings) -> int:
    """Remove our objects of all modes, and with `--takeover` those of kube-proxy; return a status.

    Kernel settings are restored as far as they still have pyproxy's values. Idempotent. Removes all
    that it may, and then raises UsageError if a right is missing.
    """
    try:
        with closing(node_setup.NodeKernel(node_setup.open_node_table())) as kernel:
            # A mode's rules may be all that protects loopback addresses now.
            is_new = kernel.shield_loopback()
            done = mode_cleanup.remove(None)
            clean = kernel.restore(keep_shield=bool(done.removed) or not is_new)
    except PermissionKernelError as error:
        raise _forbidden(error) from error
    forbidden = [each for each in done.failed if isinstance(each, PermissionKernelError)]
    for each in done.failed:
        if each not in forbidden:
            log.error("cannot remove all objects: %s", each)
    clean &= not done.failed
    if settings.takeover:
        clean &= remove_leftovers(InService())
    # One line is enough, because all of these errors have the same fix.
    for each in forbidden:
        raise _forbidden(each) from each
    return 0 if clean else 1


def _forbidden(error: PermissionKernelError) -> UsageError:
    missing = rights.missing(frozenset({Capability.NET_ADMIN, Capability.NET_RAW}))
    # Without them, another part of the system has refused: SELinux, seccomp.
    reason = f"without {' and '.join(missing)}" if missing else "although no capability is missing"
    return UsageError(f"cannot remove all objects {reason}: {error}")
