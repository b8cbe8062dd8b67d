"""The native side of the runtime: the walker of launch tables and the thread pool, as LLVM IR.

Three functions come out of it:

* ``cermet_run(table, values, work, pool, timings)`` walks a program's table (see program.py for its layout).
* ``cermet_pool_start(pool, count)`` starts workers, and says how many it could start.
* ``cermet_pool_stop(pool)`` asks them to leave.

How work is shared out
    One 64-bit word of the pool, ``work``, holds a generation in its upper half and the number of chunks nobody has claimed
    in its lower half. The caller writes a launch into the pool and then this word; everyone, the caller included, claims
    chunks by compare-and-swap until none is left, and adds what it finished to ``done``, for which the caller waits. A claim is
    for a part of what is left: several chunks at first, single ones in the end, so that all finish together. No worker is ever waited for unless it has claimed something: one that sleeps, or whose core is busy elsewhere, costs nothing, and stopping
    the pool in the middle of a run is harmless. Since a claimed chunk holds the launch back, its description cannot change
    under whoever claimed it.

How workers sleep
    A worker without work spins for a while (``pause``), then raises the flag ``asleep`` under the mutex, looks at ``work`` once
    more and waits on the condition. The caller writes ``work``, then looks at ``asleep``. Both orders are sequentially
    consistent, so one of the two sees the other.

When workers are woken
    Waking a sleeping thread costs the caller some 10 to 50 microseconds, more than a small program takes in all. A table
    therefore remembers how long its last run took, and a run wakes workers only if that was longer than ``WAKE_AFTER``. Awake
    ones take part anyway. A table that has not been run yet wakes them.

Where workers run
    Linux likes to start a woken thread on the core of the one that woke it, and to leave it there for milliseconds; the two then
    take turns. Before the call, workers are therefore told to keep off the caller's core, if it is another than last time.
"""

from __future__ import annotations

import platform

__all__ = ["POOL_BYTES", "WAKE_AFTER", "WORKER_BYTES", "PoolField", "source"]

#: Bytes of a pool with no workers; each takes WORKER_BYTES more. It must be zeroed and 64-byte aligned.
POOL_BYTES = 1280
WORKER_BYTES = 8
#: Nanoseconds of the last run from which on a program wakes sleeping workers.
WAKE_AFTER = 100_000


class PoolField:
    """Byte offsets in a pool. What different threads write at the same time lies on cache lines of its own."""

    WORK = 0
    DONE = 128
    # The launch: written by the caller, read by whoever has claimed a chunk.
    KERNEL = 256
    ARGS = 264
    BLOCKS = 272
    CHUNK = 280
    CHUNKS = 288
    SCRATCH = 296
    STRIDE = 304
    OWNER = 384  # 1 while a run has the pool
    ASLEEP = 512
    STOP = 576  # this line is hardly ever written while workers are about
    THREADS = 584  # workers and the caller
    SPIN_NS = 592
    NEXT_INDEX = 600  # of the next worker to start; the caller is 0
    WAKE = 608  # whether the present run may wake workers; written by the run that has the pool
    ALIVE = 640  # workers that have not left
    MUTEX = 704
    COND = 832
    # For waking, under the mutex.
    CPU = 960  # 1 + the core workers were last told to keep off
    STARTED = 968  # workers there are
    CORES = 1024  # 128 bytes: the set of cores the process may use
    SCRATCH_CORES = 1152  # 128 bytes: the same without the caller's
    WORKERS = 1280  # a pthread_t for each


_COMMON = """
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(ptr)
declare i32 @pthread_mutex_init(ptr, ptr)
declare i32 @pthread_mutex_lock(ptr)
declare i32 @pthread_mutex_unlock(ptr)
declare i32 @pthread_cond_init(ptr, ptr)
declare i32 @pthread_cond_wait(ptr, ptr)
declare i32 @pthread_cond_broadcast(ptr)
declare i32 @sched_yield()
declare i32 @clock_gettime(i32, ptr)

; runs of programs, launches, launches shared with workers, runs that found the pool taken
@cermet_counters = global [4 x i64] zeroinitializer, align 64

define internal i64 @now(ptr %time) nounwind {
  %rc = call i32 @clock_gettime(i32 $CLOCK, ptr %time)
  %seconds = load i64, ptr %time
  %nanos.at = getelementptr i64, ptr %time, i64 1
  %nanos = load i64, ptr %nanos.at
  %whole = mul i64 %seconds, 1000000000
  %sum = add i64 %whole, %nanos
  ret i64 %sum
}

; Claim and run chunks of the present launch until none is left.
define internal void @drain(ptr %pool, i64 %me) nounwind {
entry:
  %work.at = getelementptr i8, ptr %pool, i64 $WORK
  %kernel.at = getelementptr i8, ptr %pool, i64 $KERNEL
  %args.at = getelementptr i8, ptr %pool, i64 $ARGS
  %blocks.at = getelementptr i8, ptr %pool, i64 $BLOCKS
  %chunk.at = getelementptr i8, ptr %pool, i64 $CHUNK
  %chunks.at = getelementptr i8, ptr %pool, i64 $CHUNKS
  %scratch.at = getelementptr i8, ptr %pool, i64 $SCRATCH
  %stride.at = getelementptr i8, ptr %pool, i64 $STRIDE
  %done.at = getelementptr i8, ptr %pool, i64 $DONE
  %threads.at = getelementptr i8, ptr %pool, i64 $THREADS
  %threads = load i64, ptr %threads.at
  %parts = mul i64 %threads, 4
  %first = load atomic i64, ptr %work.at acquire, align 8
  br label %look
look:
  %word = phi i64 [ %first, %entry ], [ %seen, %claim ], [ %again, %run ]
  %count = phi i64 [ 0, %entry ], [ %count, %claim ], [ %more, %run ]
  %left = and i64 %word, 4294967295
  %none = icmp eq i64 %left, 0
  br i1 %none, label %finish, label %claim
claim:
  ; A quarter of this thread's part of what is left: many at first, single ones in the end, so that all finish together.
  %quarter = udiv i64 %left, %parts
  %few = icmp eq i64 %quarter, 0
  %take = select i1 %few, i64 1, i64 %quarter
  %minus = sub i64 %word, %take
  %pair = cmpxchg ptr %work.at, i64 %word, i64 %minus acq_rel acquire
  %seen = extractvalue { i64, i1 } %pair, 0
  %won = extractvalue { i64, i1 } %pair, 1
  br i1 %won, label %run, label %look
run:
  %kernel = load ptr, ptr %kernel.at
  %args = load ptr, ptr %args.at
  %blocks = load i64, ptr %blocks.at
  %chunk = load i64, ptr %chunk.at
  %chunks = load i64, ptr %chunks.at
  %scratch = load ptr, ptr %scratch.at
  %stride = load i64, ptr %stride.at
  %index = sub i64 %chunks, %left
  %begin = mul i64 %index, %chunk
  %size = mul i64 %take, %chunk
  %full = add i64 %begin, %size
  %last = icmp slt i64 %blocks, %full
  %end = select i1 %last, i64 %blocks, i64 %full
  %mine.offset = mul i64 %stride, %me
  %mine = getelementptr i8, ptr %scratch, i64 %mine.offset
  call void %kernel(ptr %args, i64 %begin, i64 %end, ptr %mine)
  %more = add i64 %count, %take
  %again = load atomic i64, ptr %work.at acquire, align 8
  br label %look
finish:
  %idle = icmp eq i64 %count, 0
  br i1 %idle, label %out, label %report
report:
  %old = atomicrmw add ptr %done.at, i64 %count acq_rel
  br label %out
out:
  ret void
}

; One launch on the pool: publish, wake, take part, wait.
define internal void @share(ptr %pool, ptr %kernel, ptr %args, i64 %blocks, i64 %chunk, ptr %scratch, i64 %stride) nounwind {
entry:
  %work.at = getelementptr i8, ptr %pool, i64 $WORK
  %done.at = getelementptr i8, ptr %pool, i64 $DONE
  %kernel.at = getelementptr i8, ptr %pool, i64 $KERNEL
  %args.at = getelementptr i8, ptr %pool, i64 $ARGS
  %blocks.at = getelementptr i8, ptr %pool, i64 $BLOCKS
  %chunk.at = getelementptr i8, ptr %pool, i64 $CHUNK
  %chunks.at = getelementptr i8, ptr %pool, i64 $CHUNKS
  %scratch.at = getelementptr i8, ptr %pool, i64 $SCRATCH
  %stride.at = getelementptr i8, ptr %pool, i64 $STRIDE
  %asleep.at = getelementptr i8, ptr %pool, i64 $ASLEEP
  %mutex = getelementptr i8, ptr %pool, i64 $MUTEX
  %cond = getelementptr i8, ptr %pool, i64 $COND
  %up = add i64 %blocks, %chunk
  %up1 = sub i64 %up, 1
  %chunks = udiv i64 %up1, %chunk
  store ptr %kernel, ptr %kernel.at
  store ptr %args, ptr %args.at
  store i64 %blocks, ptr %blocks.at
  store i64 %chunk, ptr %chunk.at
  store i64 %chunks, ptr %chunks.at
  store ptr %scratch, ptr %scratch.at
  store i64 %stride, ptr %stride.at
  store atomic i64 0, ptr %done.at monotonic, align 8
  %before = load atomic i64, ptr %work.at monotonic, align 8
  %next = add i64 %before, 4294967296
  %word = or i64 %next, %chunks
  store atomic i64 %word, ptr %work.at seq_cst, align 8
  %asleep = load atomic i64, ptr %asleep.at seq_cst, align 8
  %may.at = getelementptr i8, ptr %pool, i64 $WAKE
  %may = load i64, ptr %may.at
  %needed = and i64 %asleep, %may
  %nobody = icmp eq i64 %needed, 0
  br i1 %nobody, label %join, label %wake
wake:
  ; Lowered before the broadcast: workers that wake take their time, and the next launches need not call them again.
  %was = atomicrmw xchg ptr %asleep.at, i64 0 seq_cst
  %lock = call i32 @pthread_mutex_lock(ptr %mutex)
  $PLACE
  %cast = call i32 @pthread_cond_broadcast(ptr %cond)
  %unlock = call i32 @pthread_mutex_unlock(ptr %mutex)
  br label %join
join:
  call void @drain(ptr %pool, i64 0)
  br label %wait
wait:
  %turns = phi i64 [ 0, %join ], [ %turn, %pause ], [ %turn, %yield ]
  %done = load atomic i64, ptr %done.at acquire, align 8
  %all = icmp eq i64 %done, %chunks
  br i1 %all, label %out, label %spin
spin:
  %turn = add i64 %turns, 1
  %beat = and i64 %turn, 1023
  %patient = icmp ne i64 %beat, 0
  br i1 %patient, label %pause, label %yield
pause:
  $PAUSE
  br label %wait
yield:
  ; With more threads than cores the one waited for may need this core.
  %y = call i32 @sched_yield()
  br label %wait
out:
  ret void
}

define internal ptr @worker(ptr %pool) nounwind {
entry:
  %time = alloca [2 x i64]
  %csr = alloca i32
  $FLOAT_DEFAULT
  %work.at = getelementptr i8, ptr %pool, i64 $WORK
  %asleep.at = getelementptr i8, ptr %pool, i64 $ASLEEP
  %stop.at = getelementptr i8, ptr %pool, i64 $STOP
  %spin.at = getelementptr i8, ptr %pool, i64 $SPIN_NS
  %next.at = getelementptr i8, ptr %pool, i64 $NEXT_INDEX
  %alive.at = getelementptr i8, ptr %pool, i64 $ALIVE
  %mutex = getelementptr i8, ptr %pool, i64 $MUTEX
  %cond = getelementptr i8, ptr %pool, i64 $COND
  %me = atomicrmw add ptr %next.at, i64 1 monotonic
  br label %fresh
fresh:
  %since = call i64 @now(ptr %time)
  br label %look
look:
  %turns = phi i64 [ 0, %fresh ], [ %turn, %pause ], [ %turn, %clock ]
  %word = load atomic i64, ptr %work.at acquire, align 8
  %left = and i64 %word, 4294967295
  %some = icmp ne i64 %left, 0
  br i1 %some, label %work, label %spin
work:
  call void @drain(ptr %pool, i64 %me)
  br label %fresh
spin:
  %turn = add i64 %turns, 1
  %beat = and i64 %turn, 63
  %patient = icmp ne i64 %beat, 0
  br i1 %patient, label %pause, label %clock
pause:
  $PAUSE
  br label %look
clock:
  ; Woken threads often start on the caller's own core while another is idle: spinning must not keep the caller off it.
  %yielded = call i32 @sched_yield()
  %stop.soon = load atomic i64, ptr %stop.at monotonic, align 8
  %now = call i64 @now(ptr %time)
  %waited = sub i64 %now, %since
  %budget = load atomic i64, ptr %spin.at monotonic, align 8
  %spent = icmp sge i64 %waited, %budget
  %stopping = icmp ne i64 %stop.soon, 0
  %enough = or i1 %spent, %stopping
  br i1 %enough, label %sleep, label %look
sleep:
  %lock = call i32 @pthread_mutex_lock(ptr %mutex)
  br label %doze
doze:
  store atomic i64 1, ptr %asleep.at seq_cst, align 8
  %word2 = load atomic i64, ptr %work.at seq_cst, align 8
  %left2 = and i64 %word2, 4294967295
  %some2 = icmp ne i64 %left2, 0
  %stop = load atomic i64, ptr %stop.at seq_cst, align 8
  %stopped = icmp ne i64 %stop, 0
  %awake = or i1 %some2, %stopped
  br i1 %awake, label %rise, label %wait
wait:
  %woken = call i32 @pthread_cond_wait(ptr %cond, ptr %mutex)
  br label %doze
rise:
  %unlock = call i32 @pthread_mutex_unlock(ptr %mutex)
  br i1 %stopped, label %leave, label %fresh
leave:
  ; The pool may be gone right after this.
  %old = atomicrmw sub ptr %alive.at, i64 1 release
  ret ptr null
}

define i64 @cermet_pool_start(ptr %pool, i64 %count) nounwind {
entry:
  %thread = alloca ptr
  %next.at = getelementptr i8, ptr %pool, i64 $NEXT_INDEX
  %alive.at = getelementptr i8, ptr %pool, i64 $ALIVE
  %mutex = getelementptr i8, ptr %pool, i64 $MUTEX
  %cond = getelementptr i8, ptr %pool, i64 $COND
  %m = call i32 @pthread_mutex_init(ptr %mutex, ptr null)
  %c = call i32 @pthread_cond_init(ptr %cond, ptr null)
  %started.at = getelementptr i8, ptr %pool, i64 $STARTED
  %workers = getelementptr i8, ptr %pool, i64 $WORKERS
  store atomic i64 1, ptr %next.at monotonic, align 8
  store atomic i64 %count, ptr %alive.at monotonic, align 8
  br label %look
look:
  %i = phi i64 [ 0, %entry ], [ %i1, %started ]
  %enough = icmp sge i64 %i, %count
  br i1 %enough, label %out, label %start
start:
  %rc = call i32 @pthread_create(ptr %thread, ptr null, ptr @worker, ptr %pool)
  %fine = icmp eq i32 %rc, 0
  br i1 %fine, label %started, label %failed
started:
  %id = load ptr, ptr %thread
  %worker.at = getelementptr ptr, ptr %workers, i64 %i
  store ptr %id, ptr %worker.at
  %d = call i32 @pthread_detach(ptr %id)
  %i1 = add i64 %i, 1
  br label %look
failed:
  %missing = sub i64 %count, %i
  %old = atomicrmw sub ptr %alive.at, i64 %missing release
  br label %out
out:
  store i64 %i, ptr %started.at
  ret i64 %i
}

define void @cermet_pool_stop(ptr %pool) nounwind {
  %stop.at = getelementptr i8, ptr %pool, i64 $STOP
  %mutex = getelementptr i8, ptr %pool, i64 $MUTEX
  %cond = getelementptr i8, ptr %pool, i64 $COND
  %lock = call i32 @pthread_mutex_lock(ptr %mutex)
  store atomic i64 1, ptr %stop.at seq_cst, align 8
  %cast = call i32 @pthread_cond_broadcast(ptr %cond)
  %unlock = call i32 @pthread_mutex_unlock(ptr %mutex)
  ret void
}
"""

# Under the mutex, where no worker has left unless the pool was stopped: the handles are valid.
_PLACE = """
define internal void @place(ptr %pool) nounwind {
entry:
  %stop.at = getelementptr i8, ptr %pool, i64 $STOP
  %cpu.at = getelementptr i8, ptr %pool, i64 $CPU
  %started.at = getelementptr i8, ptr %pool, i64 $STARTED
  %cores = getelementptr i8, ptr %pool, i64 $CORES
  %others = getelementptr i8, ptr %pool, i64 $SCRATCH_CORES
  %workers = getelementptr i8, ptr %pool, i64 $WORKERS
  %stop = load atomic i64, ptr %stop.at monotonic, align 8
  %running = icmp eq i64 %stop, 0
  %cpu32 = call i32 @sched_getcpu()
  %cpu = sext i32 %cpu32 to i64
  %known = icmp ult i64 %cpu, 1024
  %fine = and i1 %running, %known
  %cpu1 = add i64 %cpu, 1
  %told = load i64, ptr %cpu.at
  %moved = icmp ne i64 %cpu1, %told
  %needed = and i1 %fine, %moved
  br i1 %needed, label %mask, label %out
mask:
  store i64 %cpu1, ptr %cpu.at
  call void @llvm.memcpy.p0.p0.i64(ptr %others, ptr %cores, i64 128, i1 false)
  %word = lshr i64 %cpu, 6
  %bit = and i64 %cpu, 63
  %one = shl i64 1, %bit
  %clear = xor i64 %one, -1
  %word.at = getelementptr i64, ptr %others, i64 %word
  %bits = load i64, ptr %word.at
  %rest = and i64 %bits, %clear
  store i64 %rest, ptr %word.at
  %count = load i64, ptr %started.at
  br label %look
look:
  %i = phi i64 [ 0, %mask ], [ %i1, %tell ]
  %all = icmp sge i64 %i, %count
  br i1 %all, label %out, label %tell
tell:
  %worker.at = getelementptr ptr, ptr %workers, i64 %i
  %worker = load ptr, ptr %worker.at
  ; Fails, and changes nothing, where no other core is left.
  %rc = call i32 @pthread_setaffinity_np(ptr %worker, i64 128, ptr %others)
  %i1 = add i64 %i, 1
  br label %look
out:
  ret void
}
declare i32 @sched_getcpu()
declare i32 @pthread_setaffinity_np(ptr, i64, ptr)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""

_RUN = """
; table: launches, bytes of the args area, scratch bytes of a worker, nanoseconds of the last run, then per launch
;        kernel, blocks, grain, number of args, and per arg: tag, number
;        a kernel of null is a gate: the run ends there if the int64 that its only argument points to is not 0
;        tag -2: the number itself; -1: the arena plus the number; i >= 0: values[i] plus the number
; work:  args area, scratch of each thread, arena
define void @cermet_run(ptr %table, ptr %values, ptr %work, ptr %pool, ptr %timings) nounwind {
entry:
  %time = alloca [2 x i64]
  %csr.old = alloca i32
  %csr = alloca i32
  $FLOAT_SAVE
  $FLOAT_DEFAULT
  %launches = load i64, ptr %table
  %args.bytes.at = getelementptr i64, ptr %table, i64 1
  %args.bytes = load i64, ptr %args.bytes.at
  %stride.at = getelementptr i64, ptr %table, i64 2
  %stride = load i64, ptr %stride.at
  %last.at = getelementptr i64, ptr %table, i64 3
  %records = getelementptr i64, ptr %table, i64 4
  %scratch = getelementptr i8, ptr %work, i64 %args.bytes
  %timed = icmp ne ptr %timings, null
  %alone = icmp eq ptr %pool, null
  br i1 %alone, label %begin, label %acquire
acquire:
  %threads.at = getelementptr i8, ptr %pool, i64 $THREADS
  %threads.pool = load i64, ptr %threads.at
  %owner.at = getelementptr i8, ptr %pool, i64 $OWNER
  ; Another thread's run has the pool: go on alone. That blocks nobody, and the bits are the same.
  %pair = cmpxchg ptr %owner.at, i64 0, i64 1 acq_rel monotonic
  %mine = extractvalue { i64, i1 } %pair, 1
  br i1 %mine, label %hint, label %begin
hint:
  %last = load atomic i64, ptr %last.at monotonic, align 8
  %long = icmp sge i64 %last, $WAKE_AFTER
  %may = zext i1 %long to i64
  %may.at = getelementptr i8, ptr %pool, i64 $WAKE
  store i64 %may, ptr %may.at
  %begun = call i64 @now(ptr %time)
  br label %begin
begin:
  %room = phi i64 [ 1, %entry ], [ %threads.pool, %acquire ], [ %threads.pool, %hint ]
  %shared = phi i1 [ false, %entry ], [ false, %acquire ], [ true, %hint ]
  %clock = phi i64 [ 0, %entry ], [ 0, %acquire ], [ %begun, %hint ]
  %scratch.bytes = mul i64 %room, %stride
  %arena = getelementptr i8, ptr %scratch, i64 %scratch.bytes
  %arena.int = ptrtoint ptr %arena to i64
  br label %look
look:
  %i = phi i64 [ 0, %begin ], [ %i1, %next ]
  %record = phi ptr [ %records, %begin ], [ %arg.at, %next ]
  %spread = phi i64 [ 0, %begin ], [ %spread.next, %next ]
  %all = icmp sge i64 %i, %launches
  br i1 %all, label %finish, label %launch
launch:
  %kernel = load ptr, ptr %record
  %blocks.at = getelementptr i64, ptr %record, i64 1
  %blocks = load i64, ptr %blocks.at
  %grain.at = getelementptr i64, ptr %record, i64 2
  %grain = load i64, ptr %grain.at
  %nargs.at = getelementptr i64, ptr %record, i64 3
  %nargs = load i64, ptr %nargs.at
  %args = getelementptr i64, ptr %record, i64 4
  br label %arg
arg:
  %j = phi i64 [ 0, %launch ], [ %j1, %store ]
  %arg.at = phi ptr [ %args, %launch ], [ %arg.next, %store ]
  %bound = icmp sge i64 %j, %nargs
  br i1 %bound, label %ready, label %relocate
relocate:
  %tag = load i64, ptr %arg.at
  %number.at = getelementptr i64, ptr %arg.at, i64 1
  %number = load i64, ptr %number.at
  %given = icmp sge i64 %tag, 0
  br i1 %given, label %value, label %own
value:
  %value.at = getelementptr i64, ptr %values, i64 %tag
  %value.given = load i64, ptr %value.at
  br label %store
own:
  %temporary = icmp eq i64 %tag, -1
  %value.own = select i1 %temporary, i64 %arena.int, i64 0
  br label %store
store:
  %from = phi i64 [ %value.given, %value ], [ %value.own, %own ]
  %address = add i64 %from, %number
  %slot = getelementptr i64, ptr %work, i64 %j
  store i64 %address, ptr %slot
  %j1 = add i64 %j, 1
  %arg.next = getelementptr i64, ptr %arg.at, i64 2
  br label %arg
ready:
  %is.gate = icmp eq ptr %kernel, null
  br i1 %is.gate, label %gate, label %real
gate:
  %word.at = load ptr, ptr %work
  %word = load i64, ptr %word.at
  %clean = icmp eq i64 %word, 0
  br i1 %clean, label %next, label %finish
real:
  br i1 %timed, label %start, label %choose
start:
  %t0 = call i64 @now(ptr %time)
  br label %choose
choose:
  %started = phi i64 [ 0, %real ], [ %t0, %start ]
  %several = icmp sgt i64 %blocks, %grain
  %together = and i1 %several, %shared
  br i1 %together, label %share, label %direct
direct:
  call void %kernel(ptr %work, i64 0, i64 %blocks, ptr %scratch)
  br label %ran
share:
  ; Never less than the grain, below which sharing does not pay; and a number of chunks that half a word holds.
  %fine = lshr i64 %blocks, 20
  %fine1 = add i64 %fine, 1
  %coarse = icmp sgt i64 %grain, %fine1
  %chunk = select i1 %coarse, i64 %grain, i64 %fine1
  call void @share(ptr %pool, ptr %kernel, ptr %work, i64 %blocks, i64 %chunk, ptr %scratch, i64 %stride)
  br label %ran
ran:
  %inc = zext i1 %together to i64
  %spread1 = add i64 %spread, %inc
  br i1 %timed, label %stop, label %next
stop:
  %t1 = call i64 @now(ptr %time)
  %took = sub i64 %t1, %started
  %timing.at = getelementptr i64, ptr %timings, i64 %i
  store i64 %took, ptr %timing.at
  br label %next
next:
  %spread.next = phi i64 [ %spread, %gate ], [ %spread1, %ran ], [ %spread1, %stop ]
  %i1 = add i64 %i, 1
  br label %look
finish:
  br i1 %shared, label %release, label %count
release:
  %ended = call i64 @now(ptr %time)
  %lasted = sub i64 %ended, %clock
  store atomic i64 %lasted, ptr %last.at monotonic, align 8
  %owner.end = getelementptr i8, ptr %pool, i64 $OWNER
  store atomic i64 0, ptr %owner.end release, align 8
  br label %count
count:
  %c0 = atomicrmw add ptr @cermet_counters, i64 1 monotonic
  %counter1 = getelementptr i64, ptr @cermet_counters, i64 1
  %c1 = atomicrmw add ptr %counter1, i64 %launches monotonic
  %counter2 = getelementptr i64, ptr @cermet_counters, i64 2
  %c2 = atomicrmw add ptr %counter2, i64 %spread monotonic
  %lonely = xor i1 %shared, true
  %several.threads = icmp sgt i64 %room, 1
  %refused.bit = and i1 %lonely, %several.threads
  %refused = zext i1 %refused.bit to i64
  %counter3 = getelementptr i64, ptr @cermet_counters, i64 3
  %c3 = atomicrmw add ptr %counter3, i64 %refused monotonic
  $FLOAT_RESTORE
  ret void
}
"""

# The floating-point state is set, not inherited: some libraries turn on flushing of denormals for whichever thread loads
# them, and then results would depend on the thread that computed them.
_X86 = {
    "PAUSE": "call void @llvm.x86.sse2.pause()",
    "FLOAT_SAVE": "call void @llvm.x86.sse.stmxcsr(ptr %csr.old)",
    "FLOAT_DEFAULT": "store i32 8064, ptr %csr\n  call void @llvm.x86.sse.ldmxcsr(ptr %csr)",
    "FLOAT_RESTORE": "call void @llvm.x86.sse.ldmxcsr(ptr %csr.old)",
}
_ARM = {
    "PAUSE": "call void @llvm.aarch64.isb(i32 15)",  # the "yield" hint does nothing on most cores
    "FLOAT_SAVE": "%fpcr.old = call i64 @llvm.aarch64.get.fpcr()",
    "FLOAT_DEFAULT": "call void @llvm.aarch64.set.fpcr(i64 0)",
    "FLOAT_RESTORE": "call void @llvm.aarch64.set.fpcr(i64 %fpcr.old)",
}
_OTHER = dict.fromkeys(_X86, "")


def source(machine: str | None = None, system: str | None = None) -> str:
    """The module's IR for this machine."""
    machine = (machine or platform.machine()).lower()
    system = system or platform.system()
    special = _X86 if machine in ("x86_64", "amd64", "i686") else _ARM if machine in ("aarch64", "arm64") else _OTHER
    names: dict[str, str] = {name: str(value) for name, value in vars(PoolField).items() if name.isupper()}
    names |= special
    names["WAKE_AFTER"] = str(WAKE_AFTER)
    names["CLOCK"] = "6" if system == "Darwin" else "1"  # CLOCK_MONOTONIC
    names["PLACE"] = "call void @place(ptr %pool)" if system == "Linux" else ""
    text = _COMMON + _RUN + (_PLACE if system == "Linux" else "")
    for name in sorted(names, key=len, reverse=True):  # longest first: $WORK must not eat the head of another name
        text = text.replace("$" + name, names[name])
    return text
