// A client of GET /stream in a browser, written from API.md alone: it numbers its frames, keeps each until it is
// answered, and after every end of the connection goes on where the welcome says. stream.html loads it.

const COMES_BACK_MS = 20
const POINTS = 5
const BASE_MS = 1763800000000
// Of these one in three is text, one is gzip in a binary message, one is JSON.
const MALFORMED_FRAME = 10

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1
  return value
})

function crc32(bytes) {
  let crc = 0xffffffff
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ byte) & 0xff]
  return (crc ^ 0xffffffff) >>> 0
}

async function gzip(bytes) {
  const packed = new Blob([bytes]).stream().pipeThrough(new CompressionStream('gzip'))
  return new Uint8Array(await new Response(packed).arrayBuffer())
}

// A frame as it waits: `number` is 0 until it has one, `body` a text or bytes.
async function makeFrame(index) {
  const points = Array.from({ length: POINTS }, (_, n) => ({ value: n + 0.5, ms: BASE_MS + index * POINTS + n }))
  const lines = points.map((each) => `browser,frame=${index} value=${each.value} ${each.ms}000000\n`).join('')
  if (index === MALFORMED_FRAME) return frameOf('browser,frame=10 value=1\nbrowser\n', {})
  if (index % 3 === 0) return frameOf(lines, {})
  if (index % 3 === 1) {
    const frame = frameOf(lines, { encoding: 'gzip' })
    frame.body = await gzip(new TextEncoder().encode(lines))
    return frame
  }
  const objects = points.map((each) => ({
    measurement: 'browser',
    tags: { frame: String(index) },
    fields: { value: each.value },
    timestamp: each.ms,
  }))
  return frameOf(JSON.stringify(objects), { format: 'json' })
}

function frameOf(text, header) {
  return { number: 0, header, body: text, crc: crc32(new TextEncoder().encode(text)) }
}

class Client {
  constructor(url, clientId) {
    this.url = `${url}?client_id=${encodeURIComponent(clientId)}`
    this.waiting = []
    this.underWay = []
    this.window = 0
    this.highest = 0
    this.made = 0
    this.acked = 0
    this.settledByWelcome = 0
    this.sentAgain = 0
    this.refused = []
    this.closes = []
    this.broken = ''
    this.making = false
    this.finishing = false
    this.connect()
  }

  get done() {
    return this.finishing && !this.making && this.waiting.length === 0 && this.underWay.length === 0
  }

  finish() {
    this.finishing = true
  }

  connect() {
    this.socket = new WebSocket(this.url, ['wal-ingest.v1'])
    this.socket.onmessage = (event) => this.hear(JSON.parse(event.data))
    this.socket.onclose = (event) => this.lost(event)
  }

  lost(event) {
    this.closes.push(event.code)
    this.window = 0
    // What was numbered goes first, as it was: the node may hold it.
    const all = [...this.underWay, ...this.waiting]
    const numbered = all.filter((frame) => frame.number).sort((one, other) => one.number - other.number)
    this.waiting = [...numbered, ...all.filter((frame) => !frame.number)]
    this.underWay = []
    const asked = /^retry after (\d+) s: /.exec(event.reason)
    if (event.code === 4001 || event.code === 1008) this.broken = `${event.code} ${event.reason}`
    else setTimeout(() => this.connect(), asked ? Number(asked[1]) * 1000 : COMES_BACK_MS)
  }

  hear(message) {
    if (message.type === 'welcome') this.welcomed(message)
    else if (message.type === 'ack') this.acknowledged(message)
    else if (message.type === 'error') this.refusedOne(message)
    else this.broken = `a message of type ${message.type}`
  }

  welcomed(message) {
    const stored = new Map(message.stored.map(([number, , , crc]) => [number, crc]))
    const isStored = (frame) => frame.number > 0 && stored.get(frame.number) === frame.crc
    const settled = this.waiting.filter(isStored).length
    this.settledByWelcome += settled
    this.acked += settled
    this.waiting = this.waiting.filter((frame) => !isStored(frame))
    for (const frame of this.waiting) {
      if (frame.number > 0) this.sentAgain++
      if (frame.number <= message.durable) frame.number = 0
    }
    this.waiting = [
      ...this.waiting.filter((frame) => frame.number),
      ...this.waiting.filter((frame) => !frame.number),
    ]
    this.highest = Math.max(this.highest, message.durable)
    this.window = message.window_frames
    this.send()
  }

  acknowledged(message) {
    const end = this.underWay.findIndex((frame) => frame.number === message.number) + 1
    if (end === 0) this.broken = `frame ${message.number} is acknowledged, which is not under way`
    this.acked += this.underWay.splice(0, end).length
    this.send()
  }

  refusedOne(message) {
    const at = this.underWay.findIndex((frame) => frame.number === message.number)
    if (at < 0 || message.status === 409) this.broken = `an error: ${message.error}`
    if (message.status === 503) return // the close that follows says when to come back
    this.underWay.splice(at, 1)
    this.refused.push(message)
    this.send()
  }

  // Sends what waits, as far as the window goes, and has new frames made when nothing does.
  send() {
    while (this.underWay.length < this.window && this.socket.readyState === WebSocket.OPEN) {
      if (this.waiting.length === 0) {
        this.make()
        return
      }
      const frame = this.waiting.shift()
      frame.number ||= this.highest + 1
      this.highest = Math.max(this.highest, frame.number)
      this.underWay.push(frame)
      const header = JSON.stringify({ number: frame.number, ...frame.header }) + '\n'
      this.socket.send(typeof frame.body === 'string' ? header + frame.body : new Blob([header, frame.body]))
    }
  }

  async make() {
    if (this.finishing || this.making) return
    this.making = true
    const frame = await makeFrame(this.made++)
    this.making = false
    // The connection may be another one by now.
    this.waiting.push(frame)
    this.send()
  }
}
