"""A real YARN on loopback: one ResourceManager and one NodeManager from Maven's jars, for any pyspark named in STACKS.

    with yarn_cluster(tmp_path) as yarn:
        done = submit(yarn, "cluster", "etl.py", "--config", "dl.cfg", files=["dl.cfg"])
        [application] = applications(yarn)
        logs = containers(yarn, application.id)
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen
from xml.sax.saxutils import escape

BOUNCY_CASTLE = [f"org.bouncycastle:{name}-jdk18on:1.82" for name in ("bcprov", "bcpkix", "bcutil")]


class Stack(NamedTuple):
    """What Maven has to add to one pyspark, as Ivy coordinates: S3A without Amazon's 500 MB bundle, and the daemons."""

    s3a: list
    daemons: list


STACKS = {
    ("4.0.2", "3.4.1"): Stack(
        s3a=["org.apache.hadoop:hadoop-aws:3.4.1", "org.apache.spark:spark-hadoop-cloud_2.13:4.0.2",
             "software.amazon.awssdk:s3:2.25.53", "software.amazon.awssdk:s3-transfer-manager:2.25.53"],
        daemons=["org.apache.hadoop:hadoop-client-minicluster:3.4.1", "javax.xml.bind:jaxb-api:2.3.1", *BOUNCY_CASTLE],
    ),
    ("3.5.6", "3.3.4"): Stack(
        s3a=["org.apache.hadoop:hadoop-aws:3.3.4",
             "org.apache.spark:spark-hadoop-cloud_2.12:3.5.5",  # Maven Central does not have its 3.5.6
             *(f"com.amazonaws:aws-java-sdk-{name}:1.12.262" for name in ("s3", "sts", "dynamodb"))],
        daemons=["org.apache.hadoop:hadoop-client-minicluster:3.3.4", "javax.xml.bind:jaxb-api:2.3.1", *BOUNCY_CASTLE],
    ),
}  # fmt: skip

# Output that appears when a write commits, without copies; EMR has a committer of its own.
COMMITTER = {
    "spark.hadoop.fs.s3a.committer.name": "magic",
    "spark.sql.sources.commitProtocolClass": "org.apache.spark.internal.io.cloud.PathOutputCommitProtocol",
    "spark.sql.parquet.output.committer.class": "org.apache.spark.internal.io.cloud.BindingParquetOutputCommitter",
}

# Bundles, and what Spark has in versions of its own.
EXCLUDES = [
    "software.amazon.awssdk:bundle", "com.amazonaws:aws-java-sdk-bundle", "org.apache.hadoop:hadoop-azure",
    "org.apache.hadoop:hadoop-cloud-storage", "org.apache.hadoop:hadoop-client-api",
    "org.apache.hadoop:hadoop-client-runtime", "io.netty:*", "org.slf4j:*", "com.google.*:*", "org.eclipse.jetty:*",
    "com.squareup.*:*", "com.fasterxml.*:*", "joda-time:*", "org.apache.httpcomponents:*", "commons-*:*", "junit:*",
    "org.xerial.snappy:*",
]  # fmt: skip

# Of Spark's own jars.
DAEMON_JARS = """
    hadoop-client-api hadoop-client-runtime log4j-api log4j-core log4j-slf4j2 log4j-1.2-api slf4j-api jcl-over jul-to
"""
MEMORY_MB = 6144
LOG4J = """\
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.target = SYSTEM_ERR
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{HH:mm:ss.SSS} %p %c{1}: %m%n%ex
"""


Done = subprocess.CompletedProcess


class Spark(NamedTuple):
    """One installed pyspark and the Python that it belongs to."""

    python: str
    home: Path
    s3a: Path
    daemons: Path


class Yarn(NamedTuple):
    """A running cluster: where its files lie, and the address of the ResourceManager's REST API."""

    directory: Path
    web: str
    spark: Spark


class Application(NamedTuple):
    """One job as YARN sees it. In client mode the final state is SUCCEEDED even when the script has failed."""

    id: str
    state: str
    final_state: str


# ---------------------------------------------------------------------------------------------------------------------
# Jars
# ---------------------------------------------------------------------------------------------------------------------


def spark_of(python: str = sys.executable) -> Spark:
    """The pyspark of that Python, and its jars from the cache, fetched first where they are missing."""
    printed = subprocess.run(
        [python, "-c", "import pyspark; print(pyspark.__version__, pyspark.__path__[0], sep='\\n')"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    home = Path(printed[1])
    hadoop = next((home / "jars").glob("hadoop-client-api-*.jar")).stem.removeprefix("hadoop-client-api-")
    stack = STACKS.get((printed[0], hadoop))
    if stack is None:
        raise LookupError(f"tests/yarn.py: STACKS names no jars for Spark {printed[0]} with Hadoop {hadoop}; add them")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparkify-etl" / f"spark-{printed[0]}"
    s3a, daemons = (
        fetched(home, python, packages, cache / name) for name, packages in stack._asdict().items()
    )
    return Spark(python, home, s3a, daemons)


def fetched(home: Path, python: str, packages: list, target: Path) -> Path:
    """The directory `target` with the packages and what they need, by Spark's own resolver; whole or not there."""
    wanted = " ".join(packages)
    complete = target / "packages.txt"
    if complete.exists() and complete.read_text() == wanted:
        return target
    shutil.rmtree(target, ignore_errors=True)
    (target / "ivy").mkdir(parents=True)
    nothing = target / "nothing.py"
    nothing.touch()
    command = [home / "bin" / "spark-submit", "--master", "local", "--conf", f"spark.jars.ivy={target / 'ivy'}",
               "--packages", ",".join(packages), "--exclude-packages", ",".join(EXCLUDES), nothing]  # fmt: skip
    done = subprocess.run(command, env=spark_environment(home, python), capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if "not found" in line or "Exception" in line]
        raise ConnectionError(f"cannot fetch {wanted} from Maven Central; is there a network? ({(lines or ['?'])[-1]})")
    for jar in (target / "ivy" / "jars").glob("*.jar"):
        jar.rename(target / jar.name)
    shutil.rmtree(target / "ivy")
    complete.write_text(wanted)
    return target


def spark_environment(home: Path, python: str, **more: str) -> dict:
    """The process environment for a spark-submit: this pyspark, this Java, and loopback, whatever else is installed."""
    return os.environ | {
        "SPARK_HOME": str(home), "PYSPARK_PYTHON": python, "PYSPARK_DRIVER_PYTHON": python, "JAVA_HOME": java_home(),
        "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost",
    } | more  # fmt: skip


def java_home() -> str:
    """JAVA_HOME, or the home of the java on the PATH: YARN starts its containers by it."""
    return os.environ.get("JAVA_HOME") or str(Path(shutil.which("java") or "java").resolve().parent.parent)


# ---------------------------------------------------------------------------------------------------------------------
# Cluster
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def yarn_cluster(directory: Path, python: str = sys.executable) -> Iterator[Yarn]:
    """A cluster of one node that runs while the block does, and is gone after it, however the block ends."""
    spark = spark_of(python)
    ports = free_ports(5)
    yarn = Yarn(Path(directory), f"http://127.0.0.1:{ports[0]}", spark)
    write_configuration(yarn.directory, ports)
    with ExitStack() as running:
        resource_manager = running.enter_context(daemon(yarn, "resourcemanager.ResourceManager"))
        node_manager = running.enter_context(daemon(yarn, "nodemanager.NodeManager"))
        wait_until_running(yarn, [resource_manager, node_manager])
        yield yarn


def free_ports(count: int) -> list:
    """Ports that nobody listens on. The NodeManager needs none of them: it binds to port 0 and tells the others."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def write_configuration(directory: Path, ports: list) -> None:
    rm = "yarn.resourcemanager"
    addresses = [f"{rm}.webapp.address", f"{rm}.address", f"{rm}.scheduler.address",
                 f"{rm}.resource-tracker.address", f"{rm}.admin.address"]  # fmt: skip
    nm = "yarn.nodemanager"
    write_xml(directory / "conf" / "yarn-site.xml", {
        **{name: f"127.0.0.1:{port}" for name, port in zip(addresses, ports, strict=True)},
        **{f"{nm}.{name}": "127.0.0.1:0" for name in ("address", "localizer.address", "webapp.address")},
        **{f"{each}.{name}": "127.0.0.1" for each in (rm, nm) for name in ("hostname", "bind-host")},
        f"{nm}.resource.memory-mb": MEMORY_MB, f"{nm}.resource.cpu-vcores": 8, f"{nm}.vmem-check-enabled": "false",
        f"{nm}.local-dirs": directory / "local", f"{nm}.log-dirs": directory / "logs" / "containers",
        f"{nm}.disk-health-checker.max-disk-utilization-per-disk-percentage": 99.5,
        f"{nm}.env-whitelist": "JAVA_HOME,PATH,LANG,TZ",
        "yarn.scheduler.minimum-allocation-mb": 256, "yarn.scheduler.maximum-allocation-mb": MEMORY_MB,
        f"{rm}.connect.retry-interval.ms": 500,
    })  # fmt: skip
    write_xml(directory / "conf" / "core-site.xml", {"fs.defaultFS": "file:///", "hadoop.tmp.dir": directory / "tmp"})
    write_xml(directory / "conf" / "capacity-scheduler.xml", {
        "yarn.scheduler.capacity.root.queues": "default", "yarn.scheduler.capacity.root.default.capacity": 100,
        "yarn.scheduler.capacity.maximum-am-resource-percent": 0.8,
    })  # fmt: skip
    # For the daemons alone, so not in HADOOP_CONF_DIR, where the containers would find it too.
    (directory / "daemon").mkdir()
    (directory / "daemon" / "log4j2.properties").write_text(LOG4J)


def write_xml(path: Path, properties: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (f"<name>{name}</name><value>{escape(str(value))}</value>" for name, value in properties.items())
    lines = ["<configuration>", *(f"<property>{row}</property>" for row in rows), "</configuration>"]
    path.write_text("\n".join(lines) + "\n")


@contextmanager
def daemon(yarn: Yarn, main_class: str) -> Iterator[subprocess.Popen]:
    """One daemon as a child process, its log in logs/, stopped by its process id."""
    (yarn.directory / "logs").mkdir(exist_ok=True)
    log = yarn.directory / "logs" / f"{main_class.split('.')[-1]}.log"
    environment = spark_environment(yarn.spark.home, yarn.spark.python, HADOOP_CONF_DIR=str(yarn.directory / "conf"))
    with open(log, "wb") as output:
        process = subprocess.Popen(
            java(yarn, f"server.{main_class}"), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.terminate()  # a NodeManager takes its containers with it
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_running(yarn: Yarn, daemons: list, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for process in daemons:
            if process.poll() is not None:
                tail = "\n".join(log.read_text()[-2000:] for log in (yarn.directory / "logs").glob("*.log"))
                raise ChildProcessError(f"{process.args[-1]} ended with {process.returncode}:\n{tail}")
        try:
            nodes = resource_manager_says(yarn, "ws/v1/cluster/nodes")["nodes"]
            if any(node["state"] == "RUNNING" for node in nodes):
                return
        except OSError:
            pass  # not listening yet
        time.sleep(0.25)
    raise TimeoutError(f"no node was up within {seconds} s; see {yarn.directory / 'logs'}")


def resource_manager_says(yarn: Yarn, path: str) -> dict:
    """What the ResourceManager answers over HTTP. Of its REST API the shaded jar loses much."""
    with urlopen(f"{yarn.web}/{path}", timeout=10) as answer:
        return json.load(answer)


def java(yarn: Yarn, main_class: str, *args: str) -> list:
    """The command line of one of Hadoop's own programs."""
    jars = [*yarn.spark.daemons.glob("*.jar")]
    jars += [jar for name in DAEMON_JARS.split() for jar in (yarn.spark.home / "jars").glob(f"{name}*.jar")]
    class_path = ":".join(map(str, [yarn.directory / "daemon", yarn.directory / "conf", *jars]))
    return [f"{java_home()}/bin/java", "--add-opens=java.base/java.lang=ALL-UNNAMED", "-Xmx384m", "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1", "-cp", class_path, f"org.apache.hadoop.yarn.{main_class}", *args]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Jobs
# ---------------------------------------------------------------------------------------------------------------------


def submit(yarn: Yarn, mode: str, script: Path, *args: str, timeout: float = 600, **options) -> Done:
    """The job from spark-submit to its end; options as those of `started`. Its stdout holds stderr too."""
    process = started(yarn, mode, script, *args, **options)
    try:
        stdout, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Done(process.args, process.returncode, stdout)


def started(
    yarn: Yarn, mode: str, script: Path, *args: str, files=(), options=(), python="", directory=None, **environment: str
) -> subprocess.Popen:
    """spark-submit --master yarn in client or cluster mode, running, as on the primary node of a cluster.

    `options`: more options of spark-submit. `python`: another Python for driver and executors. `directory`: where the
    command runs. spark-submit writes Python's stderr to its own stdout, and Spark's log to its stderr; both come as
    stdout.
    """
    python = python or yarn.spark.python
    command = [yarn.spark.home / "bin" / "spark-submit", "--master", "yarn", "--deploy-mode", mode]
    for name, value in job_properties(yarn, python).items():
        command += ["--conf", f"{name}={value}"]
    if files:
        command += ["--files", ",".join(map(str, files))]
    environment |= {"HADOOP_CONF_DIR": str(yarn.directory / "conf")}
    return subprocess.Popen(
        [*map(str, command), *options, str(script), *map(str, args)],
        env=spark_environment(yarn.spark.home, python, **environment), cwd=directory or yarn.directory, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def python_without_packages(directory: Path, python: str) -> str:
    """A Python of the same version that can import the standard library and nothing else."""
    subprocess.run([python, "-m", "venv", "--without-pip", directory], check=True)
    return str(directory / "bin" / "python")


def job_properties(yarn: Yarn, python: str) -> dict:
    """Small containers with this machine's Spark. They share its disk, so nothing is uploaded."""
    loopback = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "localhost"}
    container = {"PYSPARK_PYTHON": python, **loopback}
    return {
        **COMMITTER,
        "spark.yarn.jars": f"local:{yarn.spark.home}/jars/*",
        "spark.yarn.stagingDir": f"file://{yarn.directory}/staging",
        "spark.yarn.maxAppAttempts": 1,
        "spark.driver.extraClassPath": f"{yarn.spark.s3a}/*",
        "spark.executor.extraClassPath": f"{yarn.spark.s3a}/*",
        "spark.driver.memory": "768m",
        "spark.executor.memory": "768m",
        "spark.executor.instances": 2,
        "spark.executor.cores": 1,
        "spark.ui.enabled": "false",
        **{f"spark.yarn.appMasterEnv.{name}": value for name, value in container.items()},
        **{f"spark.executorEnv.{name}": value for name, value in container.items()},
    }


def applications(yarn: Yarn) -> list:
    """What the ResourceManager knows of each application (id, state, final state), the oldest first."""
    command = java(yarn, "client.cli.ApplicationCLI", "application", "-list", "-appStates", "ALL")
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [[field.strip() for field in line.split("\t")] for line in printed.splitlines() if "application_" in line]
    return sorted(Application(row[0], row[5], row[6]) for row in rows)


def containers_granted(yarn: Yarn) -> int:
    """How many containers the ResourceManager has given out since it started."""
    queue = "jmx?qry=Hadoop:service=ResourceManager,name=QueueMetrics,q0=root"
    return resource_manager_says(yarn, queue)["beans"][0]["AggregateContainersAllocated"]


def containers(yarn: Yarn, application: str) -> dict:
    """The logs (stdout and stderr) that the NodeManager has of an application's containers, the master's first."""
    folders = sorted((yarn.directory / "logs" / "containers" / application).glob("container_*"))
    return {
        folder.name: "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("std*")))
        for folder in folders
    }


def kill_executor(yarn: Yarn) -> str | None:
    """kill -9 of one executor of the newest application, by the process id that YARN wrote down."""
    applications = sorted((yarn.directory / "local" / "nmPrivate").glob("application_*"))
    found = sorted(applications[-1].glob("container_*/container_*.pid")) if applications else []
    for path in found[1:]:  # the first is the application's master
        os.killpg(int(path.read_text()), signal.SIGKILL)  # a container is a session of its own
        return path.stem
    return None
