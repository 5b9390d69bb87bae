// Reads what the script says of a claim (see claim.lua) and tells it as the gate does (see refusals.py and wire.py).

const CLAIM_HEAD_BYTES = 44
const ENTRY_BYTES = 23
const STATUSES = ['', 'confirmed', 'waitlisted', 'cancelled', 'cancelled_by_staff']
// "O", the time by Redis's clock, then the claim's letter and the length of what follows.
const ANSWER_AT = 9
const DETAIL_AT = 12

export function problem(status, code, title, detail = title, more = {}) {
  return { type: `/docs/errors#${code}`, title, status, detail, code, retryable: false, ...more }
}

const again = (more = {}) => ({ retryable: true, retry_after_ms: 300 + Math.floor(Math.random() * 150), ...more })

const SOLD_OUT = problem(409, 'sold_out', 'Every place is taken', undefined, { final: true })
const PASS_EXPIRED = problem(403, 'pass_expired', 'This pass has expired')
const CLOSED = problem(410, 'closed', 'This release has closed')
const MISMATCH = problem(422, 'idempotency_mismatch', 'This id was used for a different request')
const REBUILDING = problem(503, 'rebuilding', 'This release is being put in order', undefined, { retryable: true })
export const CONTRADICTION = problem(503, 'gate_unreachable', 'The places cannot be counted', undefined, { retryable: true })

export function answerOf(said, claimId, poolIds) {
  if (said[0] !== 0x4f) return { problem: REBUILDING }
  const detail = said.subarray(DETAIL_AT, DETAIL_AT + said.readUInt16LE(ANSWER_AT + 1))
  switch (String.fromCharCode(said[ANSWER_AT])) {
    case 'T':
      return { status: 201, view: viewOf(detail, claimId, poolIds) }
    case 'K':
    case 'P':
      return { status: 200, view: viewOf(detail, claimId, poolIds) }
    case 'W':
      return { status: 202, view: viewOf(detail, claimId, poolIds) }
    case 'G':
      return { problem: SOLD_OUT }
    case 'F':
      return { problem: problem(409, 'full', 'No place is free at this moment', undefined, again({ final: false })) }
    case 'U':
      return { problem: problem(409, 'undecided', 'Another claim is being decided', undefined, again({ final: false })) }
    case 'B': {
      const holder = idText(detail.subarray(0, 16))
      const view = viewOf(detail.subarray(38), holder, poolIds)
      const person = idText(detail.subarray(16, 32))
      const pool = poolIds[detail.readUInt16LE(32)]
      const booking = view.bookings.find((entry) => entry.person === person && entry.pool === pool)
      return { problem: problem(409, 'already_booked', 'This person is booked here already', undefined, { claim: holder, booking }) }
    }
    case 'L': {
      const of = detail[0] === 0x70 ? 'person' : 'account'
      return { problem: problem(409, 'limit_reached', 'No more places may be claimed in this release', undefined, { limit: { of } }) }
    }
    case 'N': {
      const opensMs = Number(detail.readBigUInt64LE(0))
      const nowMs = Number(said.readBigUInt64LE(1))
      const more = {
        opens_at: new Date(opensMs).toISOString(),
        server_time: new Date(nowMs).toISOString(),
        retryable: true,
        retry_after_ms: Math.max(opensMs - nowMs, 1),
      }
      return { problem: problem(425, 'not_open_yet', 'This release is not open yet', undefined, more) }
    }
    case 'Z':
      return { problem: CLOSED }
    case 'X':
      return { problem: PASS_EXPIRED }
    case 'M':
      return { problem: MISMATCH }
    default:
      return { problem: CONTRADICTION }
  }
}

function viewOf(packed, claimId, poolIds) {
  const bookings = []
  for (let at = CLAIM_HEAD_BYTES; at < packed.length; at += ENTRY_BYTES) {
    const status = STATUSES[packed[at + 22]]
    const number = packed.readUInt32LE(at + 18)
    const waits = status === 'waitlisted'
    bookings.push({
      person: idText(packed.subarray(at, at + 16)),
      pool: poolIds[packed.readUInt16LE(at + 16)],
      status,
      place_no: waits ? null : number || null,
      position: waits ? number : null,
    })
  }
  const statuses = new Set(bookings.map((booking) => booking.status))
  return {
    claim: claimId,
    state: ['confirmed', 'waitlisted'].find((state) => statuses.has(state)) ?? 'cancelled',
    seq: Number(packed.readBigUInt64LE(28)),
    bookings,
    decided_at: new Date(Number(packed.readBigUInt64LE(36))).toISOString(),
  }
}

function idText(bytes) {
  const hex = bytes.toString('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}
