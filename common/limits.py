"""Every bound in the project: name, value, unit and the reason for it. Asserted both ways by tests.

Nothing here is tuned at run time; what an operator may choose lives in the configuration, inside these bounds.
"""

# -- the wire (smoo v0) ------------------------------------------------------------------------------------------
MAX_EXPORTS = 32  # v0: CONFIG_EXPORTS carries at most 32 records
MIN_BLOCK_SIZE = 512  # bytes; v0 and the block layer's sector
MAX_BLOCK_SIZE = 65536  # bytes; v0. ublk itself takes at most the page size, checked where the device is made
STATUS_INTERVAL_S = 1.0  # host asks STATUS this often
STATUS_MISSES = 5  # so many misses in a row end the session (v0)
LINK_SILENCE_S = 3.0  # gadget: no STATUS for so long is link loss (v0)
CONTROL_TIMEOUT_MS = 2000  # one ep0 transfer; longer than a respawn of the gadget's usb role in the emulated guest

# -- the wire (v1) -----------------------------------------------------------------------------------------------
FRAME_BYTES = 64 * 1024  # one transfer, and what a read asks for: without scatter-gather it is one kmalloc
FRAME_READS = 8  # reads for frames that are kept queued; each pins a frame in the kernel
FRAMES_IN_FLIGHT = 6  # towards the peer: enough to keep the wire busy, few enough that a crowd gathers meanwhile
FRAME_RECORDS = 128  # in one frame; the smallest I/Os of a full queue travel together
WIRE_NAME_BYTES = 32  # of an export's name
MAX_OPTIMAL_IO = 1 << 24  # bytes; more is a nonsense of the source's

# -- one export --------------------------------------------------------------------------------------------------
MAX_QUEUE_DEPTH = 128  # what MAX_IN_FLIGHT allows the gadget of one export
QUEUE_DEPTH = 16  # tags of a ublk queue; one always stays idle so that a dead owner is noticed at once
MIN_QUEUE_DEPTH = 5  # below this, depth - 1 no longer lets the kernel merge and keep one FETCH idle
MAX_IO_BYTES = 128 * 1024  # largest single block request: bounds the arena slot; two 64 KiB transfers
MAX_IN_FLIGHT = 128  # host: requests outstanding for one export. A gadget that exceeds it is not a gadget
PAGE = 4096  # arena slots and ublk block sizes

# -- USB ---------------------------------------------------------------------------------------------------------
TRANSFER_BYTES = 64 * 1024  # without scatter-gather in the controller each transfer is one kmalloc
LET_GO_S = 0.5  # after an ENABLE: the kernel has ended all transfers of before by then (at the DISABLE, in fact)
MESSAGE_READS = 8  # reads kept queued on a message endpoint: covers a burst of responses

# -- the bus -----------------------------------------------------------------------------------------------------
MAX_ENVELOPE = 64 * 1024  # bytes; the largest honest one is a batch of MAX_IN_FLIGHT requests, about 8 KiB
MAX_BATCH = 256  # requests or completions in one envelope
LANE_HWM = 4096  # messages; above anything in flight, so that nothing is dropped silently
LANE_PEERS = (
    4 * MAX_EXPORTS
)  # connections of a data lane: for each export one of its role, some of dead ones to be noticed
RECONNECT_MS = 5  # ZeroMQ's default of 100 ms would be the longest step of a recovery
MAX_NAME = 64  # characters of a role, export or instance name; sun_path is 108 bytes in all
BEAT_S = 5.0  # a role tells the watchdog that it lives; each beat is two wake-ups there, and an idle side is to sleep
SILENCE_S = 8.0  # silence this long is asked about; as long again is death. Generous: the emulated guest stalls
SILENT_WAITS = 2  # such waits of spawner and watchdog for each other; counted, as who was frozen himself has not waited
LOG_BYTES = 1 << 20  # a role's log file is cut over at this size: tmpfs is memory
LOG_LINE = 2000  # characters
# Lines of one kind about what a peer sent, and in which time: all are counted, a flood fills no log.
REFUSALS_LOGGED, REFUSALS_WITHIN_S = 10, 10.0
SCRAPES = 4  # connections for metrics at a time: a scraper or two, and somebody who looks
SCRAPE_S = 5.0  # from a connection to its answer's last byte; who is slower is left
GATHER_S = 0.5  # a role that has not answered by then is told as silent
LENT_LEVEL_S = 60.0  # longest loan of a log level: who wants it longer asks again

# -- supervision -------------------------------------------------------------------------------------------------
NICE = -5  # of every process that serves a disk, as its users wait for it: three quarters of a busy processor
NEWBORN_NICE = -20  # of a successor until it is ready: I/O waits for it alone. And of the watchdog, always
URGENT_STARTS = 4  # successors at once that go before all others: more would hold up those who serve, or watch
READY_S = 60.0  # a role that is not ready by then has failed its start (USB roles are ready before a link exists)
BACKOFF_FLOOR_S = 0.05  # first pause after a death before ready
BACKOFF_CEILING_S = 5.0
HEALTHY_S = 1.0  # a role that dies sooner than this after it was ready was not healthy: the same fault may be waiting
SUDDEN_DEATHS = 3  # so many of those in a row are respawned at once, as kills from outside are; the next ones back off
DRAIN_S = 3.0  # SIGTERM to SIGKILL
QUIESCE_S = 1.0  # of those, for a queue's requests to be answered; what is in flight then is issued to its successor
DEATH_S = 10.0  # SIGKILL to "stuck"
MAX_ROLES = 2 * MAX_EXPORTS + 8
RETIRE_S = (
    30.0  # taking away what a dead role left in the kernel: a few control commands, each of which may wait for I/O
)
EXIT_WAIT_S = 0.5  # pidfd says dead, but the spawner has not told the status: so long is waited for it
SPAWNER_GONE_S = 4.0  # no spawner and no twin in its place for so long: the watchdog executes a fresh one

# -- the host ----------------------------------------------------------------------------------------------------
ATTACH_S = 20.0  # opening and resetting a USB device; the kernel's own retries of a bad device take 10 s and more
# All transfers of a lost device have ended by then, else the process is replaced. Above twice USB_CTRL_SET_TIMEOUT, the
# kernel's 5 s for a control request: while a gadget is stopped, one of ours and then a sysfs writer's hold the device.
CLOSE_S = 12.0
SEARCH_S = 1.0  # looking at sysfs while no uevent comes: the kernel drops uevents when a socket is full
RETRY_S = 0.25  # pause after a failed attachment; a device that is going away is still seen for a moment
SETTLE_S = 15.0  # from CONFIG_EXPORTS to an active STATUS: the gadget makes block devices meanwhile
SETTLE_LOOK_S = 0.03  # STATUS is asked this often until then
# What a gadget had waiting is here by then, counted from exports in force: it sends it in the turn in which they are.
ASKED_AGAIN_S = 0.02

URBS_IN_FLIGHT = 4  # of each v0 stream: the next is with the controller before the loop has heard of the last
MAX_UNWRITTEN = MAX_EXPORTS * MAX_IN_FLIGHT  # answers a gadget may leave unread; an honest one reads as it asks
HELD_BYTES = 1 << 20  # v1: write data that have no place in an arena yet; above it no frame is read
MAX_RESTARTS = 5  # of the v1 data plane within RESTARTS_WITHIN_S; then the device is given up and found anew
RESTARTS_WITHIN_S = 2.0
MAX_REQUEST_BYTES = 1 << 20  # one request of a gadget: smoo's may be larger than our own MAX_IO_BYTES
HOST_ARENA_BYTES = 4 << 20  # payloads of one export on their way: QUEUE_DEPTH of MAX_IO_BYTES, and as much again
SOURCE_THREADS = 4  # reads and writes of one source at a time: a file's page cache answers in parallel

# -- parked exports ----------------------------------------------------------------------------------------------
MIN_PARK_S = 1.0  # an operator's limit: below it a mere respawn of a role would end a disk
HOLDERS_LOOK_S = 1.0  # is a removed export's device still in use: a look through /proc
MAX_PARK_S = 30 * 86400.0  # longer is no limit

# -- configuration -----------------------------------------------------------------------------------------------
CONFIG_BYTES = 64 * 1024  # of a file: a hundred times what anybody writes, and tomllib is slow at enormous keys

# -- replug capture ----------------------------------------------------------------------------------------------
CAPTURE_RING_BYTES = 1200 * 1024  # usbmon's largest. A fifth of it is what it copies of one transfer: above FRAME_BYTES
CAPTURE_BYTES = 256 << 20  # of the file, unless --max-size says otherwise: a capture is forgotten more often than not
CAPTURE_MIN_BYTES = 1 << 20  # below it not even an enumeration and some frames would fit
