// A phone that uses the generated client: it registers, gets its command by a heartbeat, and reports the success.
import { Configuration, DeviceApi } from './client';

declare const process: any;

const [url, enrollmentToken] = process.argv.slice(2);
const device = (accessToken: string) => new DeviceApi(new Configuration({ basePath: url, accessToken }));

async function main(): Promise<void> {
  const registered = await device(enrollmentToken).register({
    register: { hardwareId: 'phone-of-typescript', pushTarget: { kind: 'fid', value: 'fid-of-typescript' } },
  });
  process.stdout.write(`${registered.deviceId}\n`);
  await new Promise((resolve) => process.stdin.once('data', resolve));
  const phone = device(registered.deviceToken);
  const answer = await phone.heartbeat({ heartbeat: { status: { battery_pct: 83 } as any } });
  const requestId = answer.commands[0].requestId;
  const result = await phone.actionResult({ actionResult: { requestId, status: 'succeeded', via: 'heartbeat' } });
  process.stdout.write(`${result.state}\n`);
  process.exit(0);
}

main().catch((error) => { process.stderr.write(`${error}\n`); process.exit(1); });
