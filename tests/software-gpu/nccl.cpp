// libnccl.so.2 of the software GPU: collectives and messages between ranks, be they processes or threads of one.
//
// Every pair of ranks of a communicator shares a Unix socket with an abstract name made from the unique id: nothing is
// left behind on disk, and a rank that dies closes its sockets, which the others notice at once. Operations are enqueued
// like kernels; one communicator's run in the order of their calls. All transfers of an operation progress together, so
// that grouped sends and receives cannot block each other. Each transfer starts with a frame that says what it is, so
// that ranks which call different things find out instead of hanging.
#include "device.h"

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

#include "numbers.h"

using namespace software_gpu;

namespace {

enum ncclResult_t : int {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
};

constexpr int VERSION = 22803;
constexpr int UINT8 = 1, FLOAT32 = 7, BFLOAT16 = 9;
constexpr int SUM = 0, MAX = 2;

struct ncclUniqueId {
    char internal[128];
};
struct UniqueId { // what is in it
    char magic[8];
    uint8_t token[16];
};
constexpr char MAGIC[9] = "SGPUNCCL";

enum class Kind : uint32_t { AllReduce = 1, ReduceScatter, AllGather, Broadcast, Message, Goodbye };

struct Frame {
    uint32_t magic = 0x4e43434c;
    Kind kind = Kind::Goodbye;
    int32_t type = 0, op = 0, root = 0;
    uint32_t unused = 0;
    uint64_t count = 0;
    bool operator==(const Frame &other) const { return memcmp(this, &other, sizeof *this) == 0; }
};
static_assert(sizeof(Frame) == 32, "no padding, frames are compared as bytes");

struct Communicator {
    int rank = 0, ranks = 0, device = 0;
    ContextPtr context;
    std::string token;
    std::vector<int> sockets; // by rank, -1 for this one
    int root_socket = -1;     // keeps the unique id alive, where this process made it
    std::atomic<int> error{0};
    std::atomic<bool> aborted{false};
    RecordPtr last; // its latest operation; guarded by state().mutex

    ~Communicator() {
        for (int socket : sockets) {
            if (socket >= 0) close(socket);
        }
        if (root_socket >= 0) close(root_socket);
    }
    // Peers see the end of the connection; the descriptors stay until the last operation has let go.
    void hang_up() {
        for (int socket : sockets) {
            if (socket >= 0) shutdown(socket, SHUT_RDWR);
        }
    }
};
using CommunicatorPtr = std::shared_ptr<Communicator>;

// Guarded by state().mutex, never destroyed.
std::map<void *, CommunicatorPtr> &communicators() {
    static auto *all = new std::map<void *, CommunicatorPtr>;
    return *all;
}
std::map<std::string, int> &root_sockets() {
    static auto *all = new std::map<std::string, int>;
    return *all;
}

// What went wrong last, in this process: much of it goes wrong on a worker's thread.
std::mutex last_error_mutex;
std::string *const last_error = new std::string;

template <class... Parts> ncclResult_t failed(ncclResult_t result, const char *format, Parts... parts) {
    char text[400];
    snprintf(text, sizeof text, format, parts...);
    {
        std::lock_guard<std::mutex> guard(last_error_mutex);
        *last_error = text;
    }
    say("NCCL: %s", text);
    return result;
}

CommunicatorPtr find(void *handle) {
    Lock lock(state().mutex);
    auto found = communicators().find(handle);
    return found == communicators().end() ? nullptr : found->second;
}

size_t width(int type) { return type == UINT8 ? 1 : type == BFLOAT16 ? 2 : 4; }

const char *name_of(Kind kind, bool receiving = false) {
    switch (kind) {
    case Kind::AllReduce: return "ncclAllReduce";
    case Kind::ReduceScatter: return "ncclReduceScatter";
    case Kind::AllGather: return "ncclAllGather";
    case Kind::Broadcast: return "ncclBroadcast";
    case Kind::Message: return receiving ? "ncclRecv" : "ncclSend";
    default: return "ncclCommDestroy";
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Rendezvous.

struct Hello {
    char magic[8];
    int32_t rank, ranks, pid;
    uint8_t device[16];
    char host[64];
};

sockaddr_un address_of(const std::string &token, const std::string &which, socklen_t *length) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::string name = "software-gpu-nccl-" + token + "-" + which;
    memcpy(address.sun_path + 1, name.data(), name.size()); // a leading zero: no file
    *length = (socklen_t)(offsetof(sockaddr_un, sun_path) + 1 + name.size());
    return address;
}

int listen_at(const std::string &token, const std::string &which) {
    socklen_t length = 0;
    sockaddr_un address = address_of(token, which, &length);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (bind(fd, reinterpret_cast<sockaddr *>(&address), length) == 0 && listen(fd, 1024) == 0) return fd;
    int reason = errno;
    close(fd);
    errno = reason;
    return -1;
}

int connect_to(const std::string &token, const std::string &which) {
    socklen_t length = 0;
    sockaddr_un address = address_of(token, which, &length);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (connect(fd, reinterpret_cast<sockaddr *>(&address), length) == 0) return fd;
    close(fd);
    return -1;
}

bool root_lives(const std::string &token) {
    int fd = connect_to(token, "root");
    if (fd >= 0) close(fd);
    return fd >= 0;
}

// Whole objects over a socket that still blocks.
template <class T> bool send_all(int fd, const T &value) {
    return send(fd, &value, sizeof value, MSG_NOSIGNAL) == (ssize_t)sizeof value;
}

template <class T> bool receive_all(int fd, T *value, Clock::time_point deadline) {
    size_t done = 0;
    while (done < sizeof *value) {
        pollfd one = {fd, POLLIN, 0};
        if (Clock::now() > deadline) return false;
        if (poll(&one, 1, 100) <= 0) continue;
        ssize_t n = recv(fd, reinterpret_cast<char *>(value) + done, sizeof *value - done, 0);
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

// Connects this rank with all others. Lower ranks are called, higher ones call.
ncclResult_t meet(Communicator &comm) {
    auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(settings().nccl_timeout));
    const std::string &token = comm.token;
    if (!root_lives(token)) return failed(ncclSystemError, "rank %d: nobody answers for this unique id", comm.rank);
    int listener = listen_at(token, std::to_string(comm.rank));
    if (listener < 0) return failed(ncclInvalidUsage, "rank %d: cannot listen (%s); is this rank taken?", comm.rank, strerror(errno));
    struct Close {
        int fd;
        ~Close() { close(fd); }
    } close_listener = {listener};

    Hello mine = {};
    memcpy(mine.magic, MAGIC, sizeof mine.magic);
    mine.rank = comm.rank;
    mine.ranks = comm.ranks;
    mine.pid = getpid();
    device_uuid(machine_device(comm.device), mine.device);
    gethostname(mine.host, sizeof mine.host - 1);
    std::vector<Hello> hellos((size_t)comm.ranks, mine);
    comm.sockets.assign((size_t)comm.ranks, -1);

    for (int peer = 0; peer < comm.rank; peer++) {
        int fd;
        while ((fd = connect_to(token, std::to_string(peer))) < 0) {
            if (Clock::now() > deadline) return failed(ncclSystemError, "rank %d: rank %d did not come", comm.rank, peer);
            if (!root_lives(token)) return failed(ncclRemoteError, "rank %d: the maker of the unique id is gone", comm.rank);
            std::this_thread::sleep_for(std::chrono::milliseconds(5));
        }
        comm.sockets[(size_t)peer] = fd;
        if (!send_all(fd, mine) || !receive_all(fd, &hellos[(size_t)peer], deadline))
            return failed(ncclRemoteError, "rank %d: rank %d is gone", comm.rank, peer);
    }
    for (int missing = comm.ranks - 1 - comm.rank; missing > 0; missing--) {
        pollfd one = {listener, POLLIN, 0};
        while (poll(&one, 1, 100) <= 0) {
            if (Clock::now() > deadline)
                return failed(ncclSystemError, "rank %d: %d higher rank(s) did not come", comm.rank, missing);
            if (!root_lives(token)) return failed(ncclRemoteError, "rank %d: the maker of the unique id is gone", comm.rank);
        }
        int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
        Hello theirs = {};
        if (fd < 0) return failed(ncclSystemError, "rank %d: accept: %s", comm.rank, strerror(errno));
        if (!receive_all(fd, &theirs, deadline) || memcmp(theirs.magic, MAGIC, sizeof theirs.magic) != 0 ||
            theirs.rank <= comm.rank || theirs.rank >= comm.ranks || comm.sockets[(size_t)theirs.rank] >= 0 ||
            !send_all(fd, mine)) {
            close(fd);
            return failed(ncclRemoteError, "rank %d: a rank left during the rendezvous, or came twice", comm.rank);
        }
        comm.sockets[(size_t)theirs.rank] = fd;
        hellos[(size_t)theirs.rank] = theirs;
    }

    // All are there. Each looks whether it likes what it sees, and all hear of it.
    ncclResult_t verdict = ncclSuccess;
    const char *several = getenv("NCCL_MULTI_RANK_GPU_ENABLE");
    bool shared_allowed = several && !strcmp(several, "1");
    for (int peer = 0; peer < comm.ranks; peer++) {
        const Hello &theirs = hellos[(size_t)peer];
        if (peer == comm.rank) continue;
        if (theirs.ranks != comm.ranks) {
            verdict = failed(ncclInvalidArgument, "rank %d counts %d ranks, rank %d counts %d", comm.rank, comm.ranks, peer,
                             theirs.ranks);
        } else if (!shared_allowed && !memcmp(theirs.device, mine.device, sizeof mine.device) &&
                   !strcmp(theirs.host, mine.host)) {
            verdict = failed(ncclInvalidUsage, "duplicate GPU: rank %d and rank %d are both on device %d of %s", comm.rank, peer,
                             machine_device(comm.device), mine.host);
        }
    }
    for (int peer = 0; peer < comm.ranks; peer++) {
        if (peer != comm.rank) send_all(comm.sockets[(size_t)peer], (int)verdict);
    }
    for (int peer = 0; peer < comm.ranks; peer++) {
        if (peer == comm.rank) continue;
        int fd = comm.sockets[(size_t)peer], theirs = 0;
        if (!receive_all(fd, &theirs, deadline) || theirs) {
            if (!verdict) verdict = failed(ncclRemoteError, "rank %d: rank %d refused the communicator", comm.rank, peer);
        }
        int size = 1 << 20;
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        fcntl(fd, F_SETFL, O_NONBLOCK);
    }
    return verdict;
}

// ---------------------------------------------------------------------------------------------------------------
// Transfers.

enum class Outcome { Done, PeerGone, Mismatch, Cancelled };

// Sends and receives, in order for each peer, all peers at once.
class Exchange {
  public:
    explicit Exchange(Communicator &comm) : comm(comm), out((size_t)comm.ranks), in((size_t)comm.ranks) {}

    void send(int peer, const void *bytes, size_t count) {
        if (count) out[(size_t)peer].push_back({static_cast<const uint8_t *>(bytes), count});
    }
    void receive(int peer, void *bytes, size_t count) {
        if (count) in[(size_t)peer].push_back({static_cast<uint8_t *>(bytes), count, nullptr, nullptr});
    }
    void send_frame(int peer, const Frame &frame) {
        frames.push_back(frame);
        send(peer, &frames.back(), sizeof(Frame));
    }
    void expect_frame(int peer, const Frame &frame) {
        frames.push_back(frame);
        const Frame *wanted = &frames.back();
        frames.emplace_back();
        in[(size_t)peer].push_back({reinterpret_cast<uint8_t *>(&frames.back()), sizeof(Frame), wanted, &frames.back()});
    }

    Outcome run() {
        for (;;) {
            bool moved = false, left = false;
            for (int peer = 0; peer < comm.ranks; peer++) {
                auto &sends = out[(size_t)peer];
                auto &receives = in[(size_t)peer];
                int fd = comm.sockets[(size_t)peer];
                bool deaf = false;
                while (!sends.empty()) {
                    ssize_t n = ::send(fd, sends.front().bytes, sends.front().count, MSG_NOSIGNAL);
                    if (n < 0 && errno == EINTR) continue;
                    if (n < 0 && errno == EAGAIN) break;
                    if (n < 0 && errno == EFAULT) touch = *sends.front().bytes;
                    if (n < 0) {
                        deaf = true; // what it said before it left may tell more
                        break;
                    }
                    moved = true;
                    sends.front().bytes += n;
                    if (!(sends.front().count -= (size_t)n)) sends.pop_front();
                }
                while (!receives.empty()) {
                    Receive &first = receives.front();
                    ssize_t n = recv(fd, first.bytes, first.count, 0);
                    if (n < 0 && errno == EINTR) continue;
                    if (n < 0 && errno == EAGAIN) break;
                    if (n < 0 && errno == EFAULT) *const_cast<volatile uint8_t *>(first.bytes) = touch;
                    if (n <= 0) return comm.aborted ? Outcome::Cancelled : gone(peer);
                    moved = true;
                    first.bytes += n;
                    if (first.count -= (size_t)n) continue;
                    if (first.wanted && !(*first.wanted == *first.got)) return unexpected(peer, *first.wanted, *first.got);
                    receives.pop_front();
                }
                if (deaf) return comm.aborted ? Outcome::Cancelled : gone(peer);
                left = left || !sends.empty() || !receives.empty();
            }
            if (!left) return Outcome::Done;
            if (!moved && wait()) return Outcome::Cancelled;
        }
    }

  private:
    struct Send {
        const uint8_t *bytes;
        size_t count;
    };
    struct Receive {
        uint8_t *bytes;
        size_t count;
        const Frame *wanted, *got; // of a frame
    };

    // Sleeps until a socket is ready, or a little; true if there is no point any more.
    bool wait() {
        std::vector<pollfd> ready;
        for (size_t peer = 0; peer < out.size(); peer++) {
            int events = (out[peer].empty() ? 0 : POLLOUT) | (in[peer].empty() ? 0 : POLLIN);
            if (events) ready.push_back({comm.sockets[peer], (short)events, 0});
        }
        PeerWait not_computing;
        ::poll(ready.data(), ready.size(), 20);
        if (comm.aborted) return true;
        Lock lock(state().mutex);
        return comm.context->dead;
    }

    Outcome gone(int peer) {
        failed(ncclRemoteError, "rank %d: rank %d is gone", comm.rank, peer);
        return Outcome::PeerGone;
    }

    Outcome unexpected(int peer, const Frame &wanted, const Frame &got) {
        if (got.kind == Kind::Goodbye) {
            failed(ncclRemoteError, "rank %d: rank %d has destroyed the communicator instead of calling %s", comm.rank, peer,
                   name_of(wanted.kind));
            return Outcome::PeerGone;
        }
        failed(ncclInvalidUsage, "rank %d: %s (count %llu, type %d, op %d, root %d) meets rank %d's %s (%llu, %d, %d, %d)",
               comm.rank, name_of(wanted.kind), (unsigned long long)wanted.count, wanted.type, wanted.op, wanted.root, peer,
               name_of(got.kind), (unsigned long long)got.count, got.type, got.op, got.root);
        return Outcome::Mismatch;
    }

    Communicator &comm;
    std::vector<std::deque<Send>> out;
    std::vector<std::deque<Receive>> in;
    std::deque<Frame> frames; // a deque, because their addresses are held
    // Memory that went away under a transfer only fails the system call. Touching it makes it an illegal access.
    volatile uint8_t touch = 0;
};

// ---------------------------------------------------------------------------------------------------------------
// Calls and what they do when their turn comes.

struct Call {
    Kind kind = Kind::Message;
    bool receiving = false; // of a message
    const void *from = nullptr;
    void *to = nullptr;
    size_t count = 0;
    int type = 0, op = 0, root = 0; // root, or the peer of a message
    StreamPtr stream;

    Frame frame() const {
        Frame frame;
        frame.kind = kind;
        frame.type = type;
        frame.op = op;
        frame.root = kind == Kind::Message ? 0 : root;
        frame.count = count;
        return frame;
    }
    size_t bytes() const { return count * width(type); }
    size_t from_bytes(const Communicator &comm) const {
        return kind == Kind::ReduceScatter ? bytes() * (size_t)comm.ranks : bytes();
    }
    size_t to_bytes(const Communicator &comm) const {
        return kind == Kind::AllGather ? bytes() * (size_t)comm.ranks : bytes();
    }
};

// to[i] = to[i] op from[i]. A sum of bf16 is rounded at each step, as it is when it travels around a ring.
void combine(void *to, const void *from, size_t count, int type, int op) {
    for (size_t i = 0; i < count; i++) {
        if (type == FLOAT32) {
            float a, b;
            memcpy(&a, static_cast<char *>(to) + 4 * i, 4);
            memcpy(&b, static_cast<const char *>(from) + 4 * i, 4);
            a = op == SUM ? a + b : a < b || b != b ? b : a;
            memcpy(static_cast<char *>(to) + 4 * i, &a, 4);
        } else if (type == BFLOAT16) {
            uint16_t a, b;
            memcpy(&a, static_cast<char *>(to) + 2 * i, 2);
            memcpy(&b, static_cast<const char *>(from) + 2 * i, 2);
            float x = from_bf16(a), y = from_bf16(b);
            a = to_bf16(op == SUM ? x + y : x < y || y != y ? y : x);
            memcpy(static_cast<char *>(to) + 2 * i, &a, 2);
        } else {
            uint8_t &a = static_cast<uint8_t *>(to)[i];
            uint8_t b = static_cast<const uint8_t *>(from)[i];
            a = (uint8_t)(op == SUM ? a + b : a < b ? b : a);
        }
    }
}

// Sends each peer the slice of `from` that it reduces, gets this rank's slice from all, and reduces it in the order of
// the ranks, so that the result is the same wherever it is computed. Slice r is `offsets[r]..offsets[r + 1]` (elements).
Outcome reduce_slices(Communicator &comm, const Call &call, const std::vector<size_t> &offsets, std::vector<uint8_t> &result) {
    size_t unit = width(call.type);
    auto from = static_cast<const uint8_t *>(call.from);
    size_t mine = offsets[(size_t)comm.rank + 1] - offsets[(size_t)comm.rank];
    std::vector<std::vector<uint8_t>> parts((size_t)comm.ranks, std::vector<uint8_t>(mine * unit));
    Exchange exchange(comm);
    for (int peer = 0; peer < comm.ranks; peer++) {
        size_t p = (size_t)peer;
        if (peer == comm.rank) {
            if (mine) memcpy(parts[p].data(), from + offsets[p] * unit, mine * unit);
            continue;
        }
        exchange.send_frame(peer, call.frame());
        exchange.send(peer, from + offsets[p] * unit, (offsets[p + 1] - offsets[p]) * unit);
        exchange.expect_frame(peer, call.frame());
        exchange.receive(peer, parts[p].data(), mine * unit);
    }
    Outcome outcome = exchange.run();
    if (outcome != Outcome::Done) return outcome;
    result = std::move(parts[0]);
    for (size_t p = 1; p < parts.size(); p++) combine(result.data(), parts[p].data(), mine, call.type, call.op);
    return outcome;
}

Outcome all_reduce(Communicator &comm, const Call &call) {
    size_t unit = width(call.type), ranks = (size_t)comm.ranks, me = (size_t)comm.rank;
    std::vector<size_t> offsets;
    for (size_t r = 0; r <= ranks; r++) offsets.push_back(call.count / ranks * r + call.count % ranks * r / ranks);
    std::vector<uint8_t> result;
    Outcome outcome = reduce_slices(comm, call, offsets, result);
    if (outcome != Outcome::Done) return outcome;
    Exchange exchange(comm);
    auto to = static_cast<uint8_t *>(call.to);
    for (size_t p = 0; p < ranks; p++) {
        if (p == me) continue;
        exchange.send((int)p, result.data(), result.size());
        exchange.receive((int)p, to + offsets[p] * unit, (offsets[p + 1] - offsets[p]) * unit);
    }
    outcome = exchange.run();
    if (outcome == Outcome::Done && !result.empty()) memcpy(to + offsets[me] * unit, result.data(), result.size());
    return outcome;
}

Outcome reduce_scatter(Communicator &comm, const Call &call) {
    std::vector<size_t> offsets;
    for (size_t r = 0; r <= (size_t)comm.ranks; r++) offsets.push_back(call.count * r);
    std::vector<uint8_t> result;
    Outcome outcome = reduce_slices(comm, call, offsets, result);
    if (outcome == Outcome::Done) memcpy(call.to, result.data(), result.size());
    return outcome;
}

Outcome all_gather(Communicator &comm, const Call &call) {
    auto to = static_cast<uint8_t *>(call.to);
    Exchange exchange(comm);
    for (int peer = 0; peer < comm.ranks; peer++) {
        if (peer == comm.rank) continue;
        exchange.send_frame(peer, call.frame());
        exchange.send(peer, call.from, call.bytes());
        exchange.expect_frame(peer, call.frame());
        exchange.receive(peer, to + (size_t)peer * call.bytes(), call.bytes());
    }
    Outcome outcome = exchange.run();
    if (outcome == Outcome::Done) memmove(to + (size_t)comm.rank * call.bytes(), call.from, call.bytes());
    return outcome;
}

Outcome broadcast(Communicator &comm, const Call &call) {
    Exchange exchange(comm);
    if (comm.rank == call.root) {
        for (int peer = 0; peer < comm.ranks; peer++) {
            if (peer == comm.rank) continue;
            exchange.send_frame(peer, call.frame());
            exchange.send(peer, call.from, call.bytes());
        }
    } else {
        exchange.expect_frame(call.root, call.frame());
        exchange.receive(call.root, call.to, call.bytes());
    }
    Outcome outcome = exchange.run();
    if (outcome == Outcome::Done && comm.rank == call.root) memmove(call.to, call.from, call.bytes());
    return outcome;
}

Outcome messages(Communicator &comm, const std::vector<Call> &calls) {
    Exchange exchange(comm);
    std::vector<const Call *> to_self, from_self;
    for (const Call &call : calls) {
        if (call.root == comm.rank) {
            (call.receiving ? from_self : to_self).push_back(&call);
        } else if (call.receiving) {
            exchange.expect_frame(call.root, call.frame());
            exchange.receive(call.root, call.to, call.bytes());
        } else {
            exchange.send_frame(call.root, call.frame());
            exchange.send(call.root, call.from, call.bytes());
        }
    }
    for (size_t i = 0; i < to_self.size() || i < from_self.size(); i++) {
        if (i >= to_self.size() || i >= from_self.size() || !(to_self[i]->frame() == from_self[i]->frame())) {
            failed(ncclInvalidUsage, "rank %d: its sends to itself do not match its receives", comm.rank);
            return Outcome::Mismatch;
        }
        memmove(from_self[i]->to, to_self[i]->from, to_self[i]->bytes());
    }
    return exchange.run();
}

Outcome perform(Communicator &comm, const std::vector<Call> &calls) {
    std::vector<Call> point_to_point;
    for (const Call &call : calls) {
        Outcome outcome = Outcome::Done;
        switch (call.kind) {
        case Kind::AllReduce: outcome = all_reduce(comm, call); break;
        case Kind::ReduceScatter: outcome = reduce_scatter(comm, call); break;
        case Kind::AllGather: outcome = all_gather(comm, call); break;
        case Kind::Broadcast: outcome = broadcast(comm, call); break;
        default: point_to_point.push_back(call);
        }
        if (outcome != Outcome::Done) return outcome;
    }
    return point_to_point.empty() ? Outcome::Done : messages(comm, point_to_point);
}

int run_calls(Communicator &comm, const std::vector<Call> &calls) {
    for (const Call &call : calls) {
        const char *name = name_of(call.kind, call.receiving);
        int code = SUCCESS;
        if (call.from) code = check_operand(name, comm.device, call.from, call.from_bytes(comm));
        if (!code && call.to) code = check_operand(name, comm.device, call.to, call.to_bytes(comm));
        if (!code) continue;
        comm.error = ncclUnhandledCudaError;
        comm.hang_up();
        return code;
    }
    if (!comm.error && !comm.aborted) {
        Outcome outcome = perform(comm, calls);
        if (outcome == Outcome::Mismatch || outcome == Outcome::PeerGone) {
            comm.error = outcome == Outcome::Mismatch ? ncclInvalidUsage : ncclRemoteError;
            comm.hang_up(); // so that all hear of it
        }
    }
    // A failed communicator's operations end without having done their work, and leave no result that could pass for
    // one. On hardware they do not even end: the kernel of a collective that has lost a rank spins until the
    // communicator is aborted.
    for (const Call &call : calls) {
        if (call.to && (comm.error || comm.aborted)) memset(call.to, settings().poison, call.to_bytes(comm));
    }
    while (comm.error && settings().nccl_stall && !comm.aborted) {
        PeerWait not_computing;
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        Lock lock(state().mutex);
        if (comm.context->dead) break;
    }
    return SUCCESS;
}

// The calls of one communicator, outside of a group or of a whole one, become one operation.
void enqueue_calls(const CommunicatorPtr &comm, std::vector<Call> calls) {
    Lock lock(state().mutex);
    Operation operation;
    operation.name = calls.size() == 1 ? name_of(calls[0].kind, calls[0].receiving) : "ncclGroup";
    operation.detail = "rank=" + std::to_string(comm->rank);
    for (const Call &call : calls) {
        operation.detail += std::string(" ") + name_of(call.kind, call.receiving) + "=" + std::to_string(call.bytes()) + "B";
        if (call.kind == Kind::Message) operation.detail += (call.receiving ? "<" : ">") + std::to_string(call.root);
    }
    operation.peers = true;
    if (comm->last) operation.after.push_back(comm->last);
    StreamPtr stream = calls[0].stream;
    std::vector<StreamPtr> others;
    for (const Call &call : calls) {
        bool known = call.stream == stream;
        for (const StreamPtr &other : others) known = known || other == call.stream;
        if (!known) others.push_back(call.stream);
    }
    // A group over several streams starts when all have come to it, and all go on when it is over.
    for (const StreamPtr &other : others) {
        Operation join;
        join.name = "ncclJoin";
        operation.after.push_back(enqueue(lock, other, std::move(join)));
    }
    operation.run = [comm, calls] { return run_calls(*comm, calls); };
    operation.skipped = [comm] {
        if (!comm->error) comm->error = ncclUnhandledCudaError;
        comm->hang_up(); // the others must not wait for this rank
    };
    comm->last = enqueue(lock, stream, std::move(operation));
    for (const StreamPtr &other : others) {
        Operation join;
        join.name = "ncclJoin";
        join.after.push_back(comm->last);
        join.peers = true;
        enqueue(lock, other, std::move(join));
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Groups, per thread.

struct Group {
    int depth = 0;
    ncclResult_t error = ncclSuccess;
    std::vector<std::pair<CommunicatorPtr, std::vector<Call>>> calls;
    struct Start {
        CommunicatorPtr comm;
        void **handle;
    };
    std::vector<Start> starts;
};
thread_local Group group;

ncclResult_t noted(ncclResult_t result) {
    if (group.depth && result && !group.error) group.error = result;
    return result;
}

bool overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes) {
    uintptr_t x = (uintptr_t)a, y = (uintptr_t)b;
    return x < y + b_bytes && y < x + a_bytes;
}

ncclResult_t check_call(const Communicator &comm, const Call &call) {
    const char *name = name_of(call.kind, call.receiving);
    if (call.type != UINT8 && call.type != FLOAT32 && call.type != BFLOAT16)
        return failed(ncclInvalidArgument, "%s: the software GPU knows no type %d", name, call.type);
    if (call.op != SUM && call.op != MAX)
        return failed(ncclInvalidArgument, "%s: the software GPU knows no reduction %d", name, call.op);
    if (call.root < 0 || call.root >= comm.ranks)
        return failed(ncclInvalidArgument, "%s: there is no rank %d", name, call.root);
    if (call.count > (size_t(1) << 40)) return failed(ncclInvalidArgument, "%s: count %zu", name, call.count);
    if (call.stream->context != comm.context)
        return failed(ncclInvalidArgument, "%s: the stream is not on the communicator's device", name);
    Lock lock(state().mutex);
    size_t from_bytes = call.from_bytes(comm), to_bytes = call.to_bytes(comm);
    bool sends = call.kind != Kind::Message ? call.kind != Kind::Broadcast || comm.rank == call.root : !call.receiving;
    bool receives = call.kind != Kind::Message || call.receiving;
    if ((sends && check_argument(lock, name, call.from, from_bytes)) ||
        (receives && check_argument(lock, name, call.to, to_bytes))) {
        return failed(ncclInvalidArgument, "%s: a buffer is not device memory, or too small", name);
    }
    if (sends && receives && overlap(call.from, from_bytes, call.to, to_bytes)) {
        auto from = static_cast<const uint8_t *>(call.from), to = static_cast<const uint8_t *>(call.to);
        size_t slice = (size_t)comm.rank * call.bytes();
        bool in_place = call.kind == Kind::ReduceScatter ? to == from + slice
                        : call.kind == Kind::AllGather   ? from == to + slice
                                                         : from == to;
        if (!in_place) return failed(ncclInvalidArgument, "%s: the buffers overlap without being in place", name);
    }
    return ncclSuccess;
}

ncclResult_t submit(void *handle, Call call, void *stream_handle) {
    CommunicatorPtr comm = find(handle);
    if (!comm) return noted(failed(ncclInvalidArgument, "%s: no such communicator", name_of(call.kind, call.receiving)));
    if (comm->error) return noted((ncclResult_t)comm->error.load());
    if (comm->sockets.empty()) return noted(failed(ncclInvalidUsage, "the communicator is not initialised yet"));
    {
        Lock lock(state().mutex);
        call.stream = find_stream(lock, stream_handle, comm->context);
        if (comm->context->error || comm->context->dead) return noted(ncclUnhandledCudaError);
    }
    if (!call.stream) return noted(failed(ncclInvalidArgument, "%s: no such stream", name_of(call.kind, call.receiving)));
    if (call.count == 0) return ncclSuccess;
    if (ncclResult_t result = check_call(*comm, call)) return noted(result);
    // A broadcast's source matters at its root alone, and only messages have one buffer.
    if (call.kind == Kind::Broadcast && comm->rank != call.root) call.from = nullptr;
    if (!group.depth) {
        enqueue_calls(comm, {call});
        return ncclSuccess;
    }
    for (auto &entry : group.calls) {
        if (entry.first == comm) {
            entry.second.push_back(call);
            return ncclSuccess;
        }
    }
    group.calls.push_back({comm, {call}});
    return ncclSuccess;
}

ncclResult_t start(const CommunicatorPtr &comm, void **handle) {
    ncclResult_t result = meet(*comm);
    Lock lock(state().mutex);
    if (result) {
        communicators().erase(*handle);
        *handle = nullptr;
        return result;
    }
    // The socket that stands for the unique id lives as long as a communicator here that came from it.
    auto root = root_sockets().find(comm->token);
    if (root != root_sockets().end()) {
        comm->root_socket = root->second;
        root_sockets().erase(root);
    }
    return result;
}

std::string token_of(const ncclUniqueId &id) {
    std::string text;
    for (size_t i = 0; i < sizeof(UniqueId::token); i++) {
        char digits[3];
        snprintf(digits, sizeof digits, "%02x", (uint8_t)id.internal[sizeof(UniqueId::magic) + i]);
        text += digits;
    }
    return text;
}

} // namespace

extern "C" {

ncclResult_t ncclGetVersion(int *version) {
    ENTRY(ncclResult_t);
    if (!version) return ncclInvalidArgument;
    *version = VERSION;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
    switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error";
    case ncclSystemError: return "unhandled system error";
    case ncclInternalError: return "internal error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
    default: return "unknown result code";
    }
}

const char *ncclGetLastError(void *) {
    thread_local std::string copy;
    std::lock_guard<std::mutex> guard(last_error_mutex);
    copy = *last_error;
    return copy.c_str();
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    ENTRY(ncclResult_t);
    if (!id) return ncclInvalidArgument;
    memset(id, 0, sizeof *id);
    UniqueId content = {};
    memcpy(content.magic, MAGIC, sizeof content.magic);
    if (getrandom(content.token, sizeof content.token, 0) != (ssize_t)sizeof content.token) return ncclSystemError;
    memcpy(id->internal, &content, sizeof content);
    int fd = listen_at(token_of(*id), "root");
    if (fd < 0) return failed(ncclSystemError, "cannot listen: %s", strerror(errno));
    Lock lock(state().mutex);
    root_sockets()[token_of(*id)] = fd;
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(void **handle, int ranks, ncclUniqueId id, int rank) {
    ENTRY(ncclResult_t);
    if (!handle || ranks < 1 || rank < 0 || rank >= ranks || memcmp(id.internal, MAGIC, sizeof(UniqueId::magic)) != 0)
        return noted(failed(ncclInvalidArgument, "ncclCommInitRank: rank %d of %d, or a bad unique id", rank, ranks));
    auto comm = std::make_shared<Communicator>();
    comm->rank = rank;
    comm->ranks = ranks;
    comm->token = token_of(id);
    {
        Lock lock(state().mutex);
        if (int code = usable(lock, &comm->context)) {
            lock.unlock();
            return noted(failed(ncclUnhandledCudaError, "ncclCommInitRank: no usable CUDA context (%d)", code));
        }
        comm->device = comm->context->device;
        *handle = new_handle(lock);
        communicators()[*handle] = comm;
    }
    if (!group.depth) return start(comm, handle);
    group.starts.push_back({comm, handle});
    return ncclSuccess;
}

ncclResult_t ncclCommCount(void *handle, int *count) {
    ENTRY(ncclResult_t);
    CommunicatorPtr comm = find(handle);
    if (!comm || !count) return ncclInvalidArgument;
    *count = comm->ranks;
    return ncclSuccess;
}

ncclResult_t ncclCommUserRank(void *handle, int *rank) {
    ENTRY(ncclResult_t);
    CommunicatorPtr comm = find(handle);
    if (!comm || !rank) return ncclInvalidArgument;
    *rank = comm->rank;
    return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(void *handle, int *device) {
    ENTRY(ncclResult_t);
    CommunicatorPtr comm = find(handle);
    if (!comm || !device) return ncclInvalidArgument;
    *device = comm->device;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(void *handle, ncclResult_t *error) {
    ENTRY(ncclResult_t);
    CommunicatorPtr comm = find(handle);
    if (!comm || !error) return ncclInvalidArgument;
    // A rank that is gone without a goodbye is noticed between operations too.
    for (size_t peer = 0; peer < comm->sockets.size() && !comm->error; peer++) {
        pollfd one = {comm->sockets[peer], POLLRDHUP, 0};
        if (one.fd < 0 || poll(&one, 1, 0) <= 0 || !(one.revents & (POLLRDHUP | POLLHUP | POLLERR))) continue;
        Frame frame;
        ssize_t n = recv(one.fd, &frame, sizeof frame, MSG_PEEK | MSG_DONTWAIT);
        if (n > 0 || (n < 0 && errno == EAGAIN)) continue; // there is still something to read, be it the goodbye
        comm->error = ncclRemoteError;
        failed(ncclRemoteError, "rank %d: rank %zu is gone", comm->rank, peer);
    }
    *error = (ncclResult_t)comm->error.load();
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(void *handle) {
    ENTRY(ncclResult_t);
    CommunicatorPtr comm = find(handle);
    if (!comm) return ncclInvalidArgument;
    Lock lock(state().mutex);
    communicators().erase(handle);
    RecordPtr last = comm->last;
    if (last) { // what has been called is still carried out
        release(lock, last);
        wait_until(lock, [&] { return last->done; });
    }
    lock.unlock();
    Frame goodbye;
    for (int socket : comm->sockets) {
        if (socket >= 0 && send(socket, &goodbye, sizeof goodbye, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) continue;
    }
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(void *handle) {
    ENTRY(ncclResult_t);
    CommunicatorPtr comm = find(handle);
    if (!comm) return ncclInvalidArgument;
    Lock lock(state().mutex);
    communicators().erase(handle);
    comm->aborted = true; // its operations, running or yet to run, end without having done anything
    comm->hang_up();
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void) {
    ENTRY(ncclResult_t);
    group.depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    ENTRY(ncclResult_t);
    if (!group.depth) return failed(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--group.depth) return ncclSuccess;
    Group all = std::move(group);
    group = Group();
    if (all.error) return all.error;
    // One thread's communicators for several devices meet the others side by side.
    std::vector<ncclResult_t> results(all.starts.size(), ncclSuccess);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < all.starts.size(); i++) {
        threads.emplace_back([&, i] { results[i] = start(all.starts[i].comm, all.starts[i].handle); });
    }
    for (std::thread &thread : threads) thread.join();
    for (ncclResult_t result : results) {
        if (result) return result;
    }
    for (auto &entry : all.calls) enqueue_calls(entry.first, entry.second);
    return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *comm, void *stream) {
    ENTRY(ncclResult_t);
    Call call;
    call.kind = Kind::AllReduce;
    call.from = from;
    call.to = to;
    call.count = count;
    call.type = type;
    call.op = op;
    return submit(comm, call, stream);
}

ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, int type, int op, void *comm, void *stream) {
    ENTRY(ncclResult_t);
    Call call;
    call.kind = Kind::ReduceScatter;
    call.from = from;
    call.to = to;
    call.count = count;
    call.type = type;
    call.op = op;
    return submit(comm, call, stream);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, int type, void *comm, void *stream) {
    ENTRY(ncclResult_t);
    Call call;
    call.kind = Kind::AllGather;
    call.from = from;
    call.to = to;
    call.count = count;
    call.type = type;
    return submit(comm, call, stream);
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream) {
    ENTRY(ncclResult_t);
    Call call;
    call.kind = Kind::Broadcast;
    call.from = from;
    call.to = to;
    call.count = count;
    call.type = type;
    call.root = root;
    return submit(comm, call, stream);
}

ncclResult_t ncclSend(const void *from, size_t count, int type, int peer, void *comm, void *stream) {
    ENTRY(ncclResult_t);
    Call call;
    call.from = from;
    call.count = count;
    call.type = type;
    call.root = peer;
    return submit(comm, call, stream);
}

ncclResult_t ncclRecv(void *to, size_t count, int type, int peer, void *comm, void *stream) {
    ENTRY(ncclResult_t);
    Call call;
    call.receiving = true;
    call.to = to;
    call.count = count;
    call.type = type;
    call.root = peer;
    return submit(comm, call, stream);
}

} // extern "C"
