-- replug's wire (smoo v0 and replug's v1) over USB captures of Linux's usbmon, as `replug capture` writes them.
--
-- wireshark -X lua_script:replug.lua FILE, or put it among Wireshark's personal Lua plugins. Wireshark 3.6 or later.
-- Filters: `replug`, `replug.export_id == 0x1234`, `replug.status > 0`, `replug.malformed`, `replug.epoch`.
--
-- A post-dissector that reads usbmon's own header: a capture often begins in the midst of a session, where Wireshark
-- knows no descriptors and asks no dissector for a class of interface. A device is taken for ours when it answers or is
-- asked what only ours is; its messages are then judged strictly. What ARCHITECTURE.md calls the wire is the reference.

local replug = Proto("replug", "replug block requests over USB")

local OPS = { [0] = "READ", [1] = "WRITE", [2] = "FLUSH", [3] = "DISCARD", [4] = "WRITE_ZEROES" }
local CONTROLS = { -- bmRequestType << 8 | bRequest
    [0xc101] = "IDENT", [0x4102] = "CONFIG_EXPORTS", [0xa103] = "STATUS", [0xc151] = "HELLO", [0x4152] = "CONFIG",
}
local ERRNO = { -- linux/errno-base.h, linux/errno.h: those a block source can end with
    [0] = "OK", [1] = "EPERM", [2] = "ENOENT", [4] = "EINTR", [5] = "EIO", [6] = "ENXIO", [7] = "E2BIG", [9] = "EBADF",
    [11] = "EAGAIN", [12] = "ENOMEM", [13] = "EACCES", [14] = "EFAULT", [16] = "EBUSY", [17] = "EEXIST", [19] = "ENODEV",
    [22] = "EINVAL", [23] = "ENFILE", [24] = "EMFILE", [25] = "ENOTTY", [26] = "ETXTBSY", [27] = "EFBIG",
    [28] = "ENOSPC", [29] = "ESPIPE", [30] = "EROFS", [32] = "EPIPE", [34] = "ERANGE", [38] = "ENOSYS", [52] = "EBADE",
    [61] = "ENODATA", [67] = "ENOLINK", [71] = "EPROTO", [74] = "EBADMSG", [75] = "EOVERFLOW", [84] = "EILSEQ",
    [95] = "EOPNOTSUPP", [104] = "ECONNRESET", [107] = "ENOTCONN", [108] = "ESHUTDOWN", [110] = "ETIMEDOUT",
    [111] = "ECONNREFUSED", [112] = "EHOSTDOWN", [113] = "EHOSTUNREACH", [116] = "ESTALE", [117] = "EUCLEAN",
    [121] = "EREMOTEIO", [122] = "EDQUOT", [125] = "ECANCELED", [129] = "EKEYREJECTED",
}
local MAX_EXPORTS, FRAME_BYTES, FRAME_RECORDS, MAX_OPTIMAL_IO = 32, 65536, 128, 0x1000000 -- common/limits.py
local HEAD, RECORD, EXPORT_V0, EXPORT_V1 = 24, 32, 24, 76

-- fields --------------------------------------------------------------------------------------------------------------
local F = {}
local function field(kind, name, label, ...)
    F[name] = ProtoField[kind]("replug." .. name, label, ...)
end
local function flag(name, label, bits, mask)
    F[name] = ProtoField.bool("replug." .. name, label, bits, nil, mask)
end
field("uint8", "version_of_wire", "Wire version")
field("string", "control", "Control request")
field("string", "message", "Message")
field("uint8", "op", "Operation", base.DEC, OPS)
field("uint8", "status", "Status", base.DEC, ERRNO)
field("uint8", "request_flags", "Request flags", base.HEX)
flag("fua", "Force unit access", 8, 0x01)
flag("no_unmap", "No unmap", 8, 0x02)
field("uint32", "request_id", "Request id", base.HEX)
field("uint32", "export_id", "Export id", base.HEX)
field("uint64", "lba", "LBA", base.DEC)
field("uint32", "blocks", "Blocks", base.DEC)
field("uint32", "flags", "Flags", base.HEX)
field("uint32", "data_offset", "Offset of this fragment in the payload")
field("uint32", "data_bytes", "Bytes of this fragment")
field("bytes", "data", "Data")
field("bytes", "payload", "Payload (v0)")
field("string", "magic", "Magic")
field("uint16", "version", "Version")
field("uint16", "minor", "Minor version")
field("uint16", "count", "Count")
field("uint64", "epoch", "Epoch", base.HEX)
field("uint32", "sequence", "Frame number in its epoch")
field("uint32", "length", "Length of head, records and data")
field("bytes", "padding", "Padding")
field("uint32", "frame_bytes", "Largest frame")
field("bool", "active", "Exports active")
field("uint32", "export_count", "Exports in force")
field("uint64", "session_id", "Session id", base.HEX)
field("bytes", "boot_id", "Boot id of the host")
field("uint32", "block_size", "Block size")
field("uint64", "size_bytes", "Size in bytes")
field("uint32", "physical_block", "Physical block size")
field("uint32", "optimal_io", "Optimal I/O size")
field("bytes", "identity", "Identity of the source")
field("string", "name", "Name")
field("uint32", "export_flags", "Export flags", base.HEX)
flag("read_only", "Read-only", 32, 0x01)
flag("can_discard", "Discard", 32, 0x02)
flag("can_write_zeroes", "Write zeroes", 32, 0x04)
flag("ejected", "Ejected", 32, 0x08)
flag("flushed", "Flushed", 32, 0x10)
flag("removed", "Removed", 32, 0x20)
field("framenum", "request_in", "Request in", base.NONE, frametype.REQUEST)
field("framenum", "response_in", "Response in", base.NONE, frametype.RESPONSE)
field("relative_time", "time", "Time since the request")
local E = {
    malformed = ProtoExpert.new("replug.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR),
    unexpected = ProtoExpert.new("replug.unexpected", "Out of order", expert.group.SEQUENCE, expert.severity.WARN),
    failed = ProtoExpert.new("replug.failed", "I/O failed", expert.group.RESPONSE_CODE, expert.severity.NOTE),
    cut = ProtoExpert.new("replug.cut", "Cut by the capture", expert.group.UNDECODED, expert.severity.WARN),
    boundary = ProtoExpert.new("replug.boundary", "Data plane starts over", expert.group.SEQUENCE, expert.severity.CHAT),
}
local declared, experts = {}, {}
for _, one in pairs(F) do declared[#declared + 1] = one end
for _, one in pairs(E) do experts[#experts + 1] = one end
replug.fields, replug.experts = declared, experts

-- usbmon's header, and what is remembered -----------------------------------------------------------------------------
local urb_id, mmapped = Field.new("usb.urb_id"), Field.new("usb.copy_of_transfer_flags")
local INTERRUPT, CONTROL, BULK = 1, 2, 3
local devices, setups, packets

function replug.init()
    devices = {} -- by bus and address: what was learnt of a device
    setups = {} -- by URB: the setup of a control transfer that is not completed yet
    packets = {} -- by packet: what was so when it was seen first; later looks come in any order
end

local function device_of(key)
    devices[key] = devices[key] or { ours = false, expected = {}, requests = {} }
    return devices[key]
end

local function usbmon(tvb)
    local head = mmapped() and 64 or 48
    if tvb:len() < head then return nil end
    local event = {
        kind = tvb(8, 1):uint(), transfer = tvb(9, 1):uint(), endpoint = tvb(10, 1):uint(),
        key = string.format("%d.%d", tvb(12, 2):le_uint(), tvb(11, 1):uint()), urb = tostring(urb_id().value),
        has_setup = tvb(14, 1):uint() == 0, status = tvb(28, 4):le_int(), length = tvb(32, 4):le_uint(),
        captured = tvb(36, 4):le_uint(), setup = tvb(40, 8),
    }
    event.submitted, event.incoming = event.kind == 0x53, event.endpoint >= 0x80
    if tvb:len() > head then event.data = tvb(head):tvb() end
    event.cut = event.data ~= nil and event.data:len() < event.length
    return event
end

-- What is shown of one packet: a tree made at its first line, and the words of the info column.
local function shown(tvb, pinfo, root)
    local show = { words = {} }
    function show.tree()
        show.root = show.root or root:add(replug, tvb)
        return show.root
    end
    function show.say(text) show.words[#show.words + 1] = text end
    function show.malformed(item, text)
        item:add_proto_expert_info(E.malformed, text)
        show.say("[malformed: " .. text .. "]")
    end
    function show.done()
        if not show.root then return end
        pinfo.cols.protocol = "replug"
        pinfo.cols.info = table.concat(show.words, ", ")
    end
    return show
end

-- requests and their responses ----------------------------------------------------------------------------------------
-- `now` is what of this packet is remembered: pairs made at the first look, which is in order.
local function paired(show, item, pinfo, now, device, key, is_request, index)
    if not pinfo.visited then
        if is_request then
            device.requests[key] = { number = pinfo.number, time = pinfo.abs_ts }
            now.pairs[index] = device.requests[key]
        else
            local request = device.requests[key]
            if request and not request.response then
                request.response, request.took = pinfo.number, pinfo.abs_ts - request.time
            end
            now.pairs[index] = request
        end
    end
    local pair = now.pairs[index]
    if is_request then
        if pair and pair.response then item:add(F.response_in, pair.response):set_generated() end
    elseif pair then
        item:add(F.request_in, pair.number):set_generated()
        local took = pinfo.abs_ts - pair.time
        item:add(F.time, NSTime.new(math.floor(took), math.floor(took % 1 * 1e9))):set_generated()
    elseif not now.joined then
        item:add_proto_expert_info(E.unexpected, "answers no request of this capture")
    end
end

local function head_of(item, buffer, op_at)
    item:add(F.op, buffer(op_at, 1))
    return buffer(op_at, 1):uint()
end

local function of_blocks(item, buffer, at)
    item:add_le(F.request_id, buffer(at, 4))
    item:add_le(F.export_id, buffer(at + 4, 4))
    item:add_le(F.lba, buffer(at + 8, 8))
    item:add_le(F.blocks, buffer(at + 16, 4))
    return string.format("export 0x%x lba %s+%d", buffer(at + 4, 4):le_uint(), tostring(buffer(at + 8, 8):le_uint64()),
        buffer(at + 16, 4):le_uint())
end

local function pair_key(epoch, buffer, at)
    return string.format("%s %x %x", epoch, buffer(at + 4, 4):le_uint(), buffer(at, 4):le_uint())
end

local function of_status(show, item, range)
    local status = range:uint()
    item:add(F.status, range)
    if status == 0 then return "OK" end
    local name = ERRNO[status] or string.format("errno %d", status)
    item:add_proto_expert_info(E.failed, "ended with " .. name)
    return name
end

-- v0: Request and Response on the interrupt endpoints, bare payloads on bulk --------------------------------------------
local function plausible(data) -- of a device that nothing is known of yet
    return data:len() == 28 and data(0, 1):uint() <= 3 and data(2, 2):le_uint() == 0 and data(24, 4):le_uint() == 0
        and data(8, 4):le_uint() ~= 0
end

local function message_v0(show, event, pinfo, now, device)
    local data, is_request = event.data, event.incoming
    local name = is_request and "Request" or "Response"
    local item = show.tree():add(replug, data(), name .. " (v0)")
    item:add(F.version_of_wire, 0):set_generated()
    item:add(F.message, name):set_generated()
    if data:len() ~= 28 then
        show.say("v0 " .. name)
        return show.malformed(item, string.format("%d bytes, not 28", data:len()))
    end
    local op = head_of(item, data, 0)
    local status = ""
    if not is_request then status = " " .. of_status(show, item, data(1, 1)) end
    local where = of_blocks(item, data, 4)
    item:add_le(F.flags, data(24, 4))
    show.say(string.format("v0 %s %s %s%s", name, OPS[op] or "?", where, status))
    item:append_text(string.format(": %s %s%s", OPS[op] or "?", where, status))
    if op > 3 then show.malformed(item, string.format("unknown operation %d", op)) end
    paired(show, item, pinfo, now, device, pair_key("v0", data, 4), is_request, 1)
end

local function payload_v0(show, event)
    local item = show.tree():add(F.payload, event.data())
    local what = event.incoming and "of a write" or "of a read"
    item:append_text(" " .. what)
    show.tree():add(F.version_of_wire, 0):set_generated()
    show.say(string.format("v0 payload %s, %d bytes", what, event.data:len()))
end

-- v1: frames on the bulk endpoints -------------------------------------------------------------------------------------
local function padding(length) return length % 64 == 0 and 4 or 0 end

local function is_frame(data) return data:len() >= 4 and data(0, 4):string() == "RPLF" end

-- Its place in the epoch: judged at the first look only, and remembered.
local function ordered(item, pinfo, now, device, direction, epoch, sequence)
    if not pinfo.visited then
        local expected = device.expected[direction]
        if device.epoch and device.epoch ~= epoch then
            now.order = string.format("epoch %s, but the last CONFIG began %s", epoch, device.epoch)
        elseif expected and expected.epoch == epoch and expected.sequence ~= sequence then
            now.order = string.format("frame %d where %d was to come", sequence, expected.sequence)
        end
        device.expected[direction] = { epoch = epoch, sequence = (sequence + 1) % 0x100000000 }
    end
    if now.order then item:add_proto_expert_info(E.unexpected, now.order) end
end

local function record_v1(show, event, pinfo, now, device, tree, at, place, index, epoch)
    local data, is_request = event.data, event.incoming
    local item = tree:add(replug, data(at, RECORD), is_request and "Request" or "Response")
    item:add(F.message, is_request and "Request" or "Response"):set_generated()
    local op, status = head_of(item, data, at), ""
    if is_request then
        local flags = item:add(F.request_flags, data(at + 1, 1))
        flags:add(F.fua, data(at + 1, 1))
        flags:add(F.no_unmap, data(at + 1, 1))
    else
        status = " " .. of_status(show, item, data(at + 1, 1))
    end
    local where = of_blocks(item, data, at + 4)
    item:add_le(F.data_offset, data(at + 24, 4))
    item:add_le(F.data_bytes, data(at + 28, 4))
    local offset, size = data(at + 24, 4):le_uint(), data(at + 28, 4):le_uint()
    local fragment = offset > 0 and string.format(" from byte %d", offset) or ""
    local text = string.format("%s%s %s%s%s", is_request and "" or "answer ", OPS[op] or "?", where, fragment, status)
    item:append_text(": " .. text)
    show.say(text)
    if not OPS[op] then show.malformed(item, string.format("unknown operation %d", op)) end
    if data(at + 2, 2):le_uint() ~= 0 then show.malformed(item, "reserved field is not 0") end
    if size > 0 and place < data:len() then item:add(F.data, data(place, math.min(size, data:len() - place))) end
    if offset == 0 or not is_request then
        paired(show, item, pinfo, now, device, pair_key(epoch, data, at + 4), is_request, index)
    end
    return place + size
end

local function frame_v1(show, event, pinfo, now, device)
    local data = event.data
    local tree = show.tree():add(replug, data(), "Frame (v1)")
    tree:add(F.version_of_wire, 1):set_generated()
    local who = event.incoming and "gadget" or "host"
    if data:len() < HEAD then
        show.say("v1 frame of the " .. who)
        return show.malformed(tree, string.format("%d bytes, shorter than a frame's head of %d", data:len(), HEAD))
    end
    tree:add(F.magic, data(0, 4))
    tree:add_le(F.version, data(4, 2))
    tree:add_le(F.count, data(6, 2))
    tree:add_le(F.epoch, data(8, 8))
    tree:add_le(F.sequence, data(16, 4))
    tree:add_le(F.length, data(20, 4))
    local count, length = data(6, 2):le_uint(), data(20, 4):le_uint()
    local epoch, sequence = "0x" .. data(8, 8):le_uint64():tohex(), data(16, 4):le_uint()
    show.say(string.format("v1 frame %d of the %s, %d records", sequence, who, count))
    if not is_frame(data) then return show.malformed(tree, "magic is not RPLF") end
    if data(4, 2):le_uint() ~= 1 then
        return show.malformed(tree, string.format("version %d, only 1 is known", data(4, 2):le_uint()))
    end
    ordered(tree, pinfo, now, device, event.incoming, epoch, sequence)
    if event.cut then
        tree:add_proto_expert_info(E.cut, string.format("%d of %d bytes are here", data:len(), event.length))
    elseif data:len() ~= length + padding(length) then
        show.malformed(tree, string.format("%d bytes where %d and their padding were to come", data:len(), length))
    end
    if count == 0 or count > FRAME_RECORDS or HEAD + count * RECORD > length then
        return show.malformed(tree, string.format("%d records do not fit %d bytes", count, length))
    end
    local place = HEAD + count * RECORD
    for index = 1, count do
        local at = HEAD + (index - 1) * RECORD
        if at + RECORD > data:len() then break end
        place = record_v1(show, event, pinfo, now, device, tree, at, place, index, epoch)
    end
    if place ~= length then
        show.malformed(tree, string.format("its records and data are %d bytes, its head says %d", place, length))
    elseif length < data:len() then
        tree:add(F.padding, data(length))
    end
end

-- ep0 -----------------------------------------------------------------------------------------------------------------
local function power_of_two(value) -- without a library of bits, which Wireshark's versions of Lua do not share
    while value > 1 and value % 2 == 0 do value = value / 2 end
    return value == 1
end

local function export_common(show, item, data, at)
    item:add_le(F.export_id, data(at, 4))
    item:add_le(F.block_size, data(at + 4, 4))
    item:add_le(F.size_bytes, data(at + 8, 8))
    local id, size = data(at, 4):le_uint(), data(at + 4, 4):le_uint()
    item:append_text(string.format(" 0x%x", id))
    if id == 0 then show.malformed(item, "export id 0") end
    if size < 512 or size > 65536 or not power_of_two(size) then
        show.malformed(item, string.format("block size %d is not a power of two in 512..65536", size))
    elseif data(at + 8, 8):le_uint64() == UInt64(0) or data(at + 8, 8):le_uint64() % UInt64(size) ~= UInt64(0) then
        show.malformed(item, "its bytes are not a multiple of its block size")
    end
end

local function exports(show, tree, data, head, each, dissect)
    tree:add_le(F.version, data(0, 2))
    tree:add_le(F.count, data(2, 2))
    tree:add_le(F.flags, data(4, 4))
    local count = data(2, 2):le_uint()
    show.say(string.format("%d exports", count))
    if count > MAX_EXPORTS or data:len() ~= head + count * each then
        return show.malformed(tree, string.format("%d bytes for %d exports", data:len(), count))
    end
    for index = 0, count - 1 do
        local at = head + index * each
        local item = tree:add(replug, data(at, each), "Export")
        export_common(show, item, data, at)
        dissect(item, at)
    end
end

local function version_is(show, tree, data, version)
    if data(0, 2):le_uint() == version and data(4, 4):le_uint() == 0 then return end
    show.malformed(tree, string.format("version %d, flags 0x%x: only %d and 0 are known", data(0, 2):le_uint(),
        data(4, 4):le_uint(), version))
end

local MESSAGES = {}

function MESSAGES.IDENT(show, tree, data)
    tree:add(F.magic, data(0, 4))
    tree:add_le(F.version, data(4, 2))
    tree:add_le(F.minor, data(6, 2))
    show.say(string.format("version %d.%d", data(4, 2):le_uint(), data(6, 2):le_uint()))
    if data(0, 4):string() ~= "SMOO" then show.malformed(tree, "magic is not SMOO") end
end

function MESSAGES.STATUS(show, tree, data)
    tree:add_le(F.version, data(0, 2))
    tree:add(F.active, data(2, 2), data(2, 2):le_uint() % 2 == 1)
    tree:add_le(F.export_count, data(4, 4))
    tree:add_le(F.session_id, data(8, 8))
    show.say(string.format("%s, %d exports, session 0x%s", data(2, 2):le_uint() % 2 == 1 and "active"
        or "inactive", data(4, 4):le_uint(), data(8, 8):le_uint64():tohex()))
    if data(0, 2):le_uint() ~= 0 then show.malformed(tree, "version is not 0") end
    if data(4, 4):le_uint() > MAX_EXPORTS then show.malformed(tree, "more exports than 32") end
end

function MESSAGES.HELLO(show, tree, data)
    tree:add(F.magic, data(0, 4))
    tree:add_le(F.version, data(4, 2))
    tree:add_le(F.frame_bytes, data(8, 4))
    show.say(string.format("version %d", data(4, 2):le_uint()))
    if data(0, 4):string() ~= "RPL1" or data(4, 2):le_uint() ~= 1 then
        show.malformed(tree, "not RPL1 in version 1")
    elseif data(8, 4):le_uint() ~= FRAME_BYTES then
        show.malformed(tree, string.format("frames of %d bytes: only %d are known", data(8, 4):le_uint(), FRAME_BYTES))
    end
end

function MESSAGES.CONFIG_EXPORTS(show, tree, data)
    version_is(show, tree, data, 0)
    exports(show, tree, data, 8, EXPORT_V0, function(item, at)
        if data(at + 16, 8):le_uint64() ~= UInt64(0) then show.malformed(item, "reserved field is not 0") end
    end)
end

function MESSAGES.CONFIG(show, tree, data, pinfo, device)
    version_is(show, tree, data, 1)
    tree:add_le(F.epoch, data(8, 8))
    tree:add(F.boot_id, data(16, 16))
    local epoch = "0x" .. data(8, 8):le_uint64():tohex()
    show.say("epoch " .. epoch)
    if data(8, 8):le_uint64() == UInt64(0) then show.malformed(tree, "no epoch") end
    if not pinfo.visited and device.epoch ~= epoch then device.epoch, device.expected = epoch, {} end
    exports(show, tree, data, 32, EXPORT_V1, function(item, at)
        local flags = item:add_le(F.export_flags, data(at + 16, 4))
        for _, name in ipairs({ "read_only", "can_discard", "can_write_zeroes", "ejected", "flushed", "removed" }) do
            flags:add_le(F[name], data(at + 16, 4))
        end
        if data(at + 16, 4):le_uint() > 0x3f then show.malformed(item, "flags are not all known") end
        for name, where in pairs({ physical_block = at + 20, optimal_io = at + 24 }) do
            local value = data(where, 4):le_uint()
            item:add_le(F[name], data(where, 4))
            if value > MAX_OPTIMAL_IO or (value > 0 and not power_of_two(value)) then
                show.malformed(item, string.format("%s %d is no power of two", name, value))
            end
        end
        item:add(F.identity, data(at + 28, 16))
        item:add(F.name, data(at + 44, 32))
        item:append_text(" " .. data(at + 44, 32):stringz())
    end)
end

local BEGINNINGS = { [0xc101] = true, [0xc151] = true, [0x010b] = true } -- IDENT, HELLO, SET_INTERFACE: nothing is on
-- the wire then, so from there on each response has its request in the capture
local SMALLEST = { IDENT = 8, STATUS = 16, HELLO = 16, CONFIG_EXPORTS = 8, CONFIG = 32 }
local EXACT = { IDENT = true, STATUS = true, HELLO = true }

local function message_ep0(show, event, pinfo, device, name)
    local data = event.data
    local tree = show.tree():add(replug, data(), name)
    show.say(name)
    tree:add(F.control, name):set_generated()
    tree:add(F.version_of_wire, (name == "HELLO" or name == "CONFIG") and 1 or 0):set_generated()
    if data:len() < SMALLEST[name] or (EXACT[name] and data:len() ~= SMALLEST[name]) then
        return show.malformed(tree, string.format("%d bytes, not %d", data:len(), SMALLEST[name]))
    end
    MESSAGES[name](show, tree, data, pinfo, device)
end

-- A question's data come with its completion; which question that was, its submission told.
local function control(show, event, pinfo, now, device)
    if not pinfo.visited then
        if event.submitted and event.has_setup then
            local setup = event.setup
            now.setup = setup(0, 1):uint() * 256 + setup(1, 1):uint()
            now.index = setup(4, 2):le_uint()
            setups[event.key .. event.urb] = now.setup
        elseif not event.submitted then
            now.setup, setups[event.key .. event.urb] = setups[event.key .. event.urb], nil
        end
        if now.setup == 0x8006 and event.data and event.data:len() >= 9 then -- a configuration that has our interface
            local bytes = event.data:bytes():tohex(true, "")
            if bytes:find("04ff534d", 1, true) or bytes:find("04ff4203", 1, true) then device.ours = true end
        end
        if now.setup == 0xa103 and event.data and event.data:len() == 16 then device.ours = true end
        if now.setup and (CONTROLS[now.setup] and now.setup ~= 0xa103) and event.data then
            local magic = event.data:len() >= 4 and event.data(0, 4):string()
            if magic == "SMOO" or magic == "RPL1" or not event.incoming then device.ours = true end
        end
        if BEGINNINGS[now.setup] then device.begun = true end
        now.ours = device.ours
    end
    if not now.ours or not now.setup then return end
    local name = CONTROLS[now.setup]
    if now.setup == 0x010b and event.submitted then
        show.tree():add_proto_expert_info(E.boundary, "SET_INTERFACE ends all transfers: a new epoch begins")
        show.say("SET_INTERFACE: the data plane starts over")
        if not pinfo.visited then device.expected = {} end
    elseif name and event.data then
        message_ep0(show, event, pinfo, device, name)
    elseif name and event.submitted then
        show.tree():add(F.control, name):set_generated()
        show.say(name .. "?")
    elseif name then
        show.tree():add(F.control, name):set_generated()
        local text = event.status == -32 and " refused (stalled)" or string.format(" ended with %d", event.status)
        show.say(name .. (event.status == 0 and " done" or text))
        if event.status ~= 0 then show.tree():add_proto_expert_info(E.failed, name .. text) end
    end
end

local function message(show, event, pinfo, now, device)
    if event.transfer == BULK and not event.data and not event.submitted and event.status == -32 and device.ours then
        show.tree():add_proto_expert_info(E.boundary, "EPIPE: the gadget's usb was replaced and halted this endpoint")
        show.say("halted by the gadget: the data plane starts over")
        return
    end
    -- data leave with a submission, and come with a completion
    if not event.data or event.submitted == event.incoming then return end
    if not pinfo.visited then
        if event.transfer == BULK and is_frame(event.data) then device.ours, device.v1 = true, true end
        if event.transfer == INTERRUPT then
            if plausible(event.data) then device.ours = true end
            device.v1 = false
        end
        now.ours, now.v1, now.joined = device.ours, device.v1 or device.epoch ~= nil, not device.begun
    end
    if not now.ours then return end
    if event.transfer == INTERRUPT then
        message_v0(show, event, pinfo, now, device)
    elseif now.v1 then
        frame_v1(show, event, pinfo, now, device)
    else
        payload_v0(show, event)
    end
end

function replug.dissector(tvb, pinfo, root)
    if not urb_id() then return end
    local event = usbmon(tvb)
    if not event then return end
    if not packets[pinfo.number] then packets[pinfo.number] = { pairs = {} } end
    local show, device, now = shown(tvb, pinfo, root), device_of(event.key), packets[pinfo.number]
    if event.transfer == CONTROL then
        control(show, event, pinfo, now, device)
    elseif event.transfer == BULK or event.transfer == INTERRUPT then
        message(show, event, pinfo, now, device)
    end
    show.done()
end

register_postdissector(replug)
