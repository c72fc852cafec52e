// A client in another language: @grpc/grpc-js and the protos. Trains a job by unary calls.
// Usage: node client.mjs FOLDER_OF_PROTOS MASTER JOB. Prints one JSON object.
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [protos, master, jobId] = process.argv.slice(2);
const load = (name) =>
  grpc.loadPackageDefinition(
    loader.loadSync(`shoal/wire/v1/${name}.proto`, { includeDirs: [protos], keepCase: true, longs: Number, defaults: true }),
  ).shoal;
const call = (stub, method, request) =>
  new Promise((resolve, reject) =>
    stub[method](request, { deadline: Date.now() + 20_000 }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    ),
  );
const insecure = grpc.credentials.createInsecure();
const jobs = new (load("jobs").jobs.v1.JobService)(master, insecure);
const MasterService = load("master").master.v1.MasterService;
const ParameterServerService = load("parameter_server").parameter_server.v1.ParameterServerService;

const { servers } = await call(jobs, "ListParameterServers", {});
const [server] = servers.filter((each) => each.job_ids.includes(jobId));
const shard = new ParameterServerService(`${server.host}:${server.port}`, insecure);
const me = { worker_id: "node", job_id: jobId };
const { layers } = await call(shard, "RegisterWorker", me);
const [part] = layers;
const pull = async () => {
  const { parameter_data } = await call(shard, "PullParameters", { ...me, layer_name: part.layer_name });
  return Array.from({ length: parameter_data.length / 4 }, (_, index) => parameter_data.readFloatLE(4 * index));
};
const before = await pull();
const gradient = Buffer.alloc(4 * before.length);
before.forEach((_, index) => gradient.writeFloatLE(1, 4 * index));
const pushed = await call(shard, "PushGradients", {
  ...me,
  layer_name: part.layer_name,
  gradient_data: gradient,
  version: 0,
});
const after = await pull();
const wrong = await call(shard, "PushGradients", { ...me, layer_name: "nothing", version: 0 }).catch((error) => error);
const completed = await call(new MasterService(master, insecure), "CompleteJob", {
  ...me,
  results: { success: true, accuracy: 0.25, loss: 2, steps: 1 },
});
console.log(
  JSON.stringify({ before, after, version: pushed.new_version, code: wrong.code, completed: completed.success }),
);
process.exit(0);
