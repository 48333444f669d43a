// Writes with InfluxDB's JavaScript client and prints what it was told, as JSON.
// node write_with_node.mjs URL
import { InfluxDB, Point, HttpError } from '@influxdata/influxdb-client'
import { HealthAPI, PingAPI, ReadyAPI } from '@influxdata/influxdb-client-apis'

const url = process.argv[2]
const seen = {}
const influx = new InfluxDB({ url, token: 'any' })

// Its defaults: batches, gzip above 1,000 bytes, retries of its own.
const writer = influx.getWriteApi('any', 'any', 'ns')
writer.useDefaultTags({ client: 'node' })
for (let n = 0; n < 2500; n++) {
  writer.writePoint(
    new Point('nodejs')
      .tag('batch', 'yes')
      .floatField('value', n + 0.5)
      .intField('n', n)
      .booleanField('even', n % 2 === 0)
      .stringField('text', `say "${n}", please`)
      .timestamp(String(1700000000000000000n + BigInt(n)))
  )
}
await writer.close()

const milliseconds = influx.getWriteApi('any', 'any', 'ms', { gzipThreshold: 0 })
milliseconds.writePoint(new Point('nodejs_ms').floatField('value', 1.5).timestamp(1700000000123))
await milliseconds.close()

const refused = influx.getWriteApi('any', 'any', 'ns', { maxRetries: 0 })
refused.writeRecord('this is no line protocol')
try {
  await refused.close()
  seen.refused = 'it was not'
} catch (error) {
  seen.refused = { isHttpError: error instanceof HttpError, status: error.statusCode, code: error.code }
}

seen.health = (await new HealthAPI(influx).getHealth()).status
seen.ready = (await new ReadyAPI(influx).getReady()).status
await new PingAPI(influx).getPing()
seen.ping = true
console.log(JSON.stringify(seen))
