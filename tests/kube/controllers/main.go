// rds-kube-controllers is kube-controller-manager and kube-scheduler in one program, for `make
// e2e`. Apart from rds-kube, so that whoever needs the API server only does not build these.
package main

import (
	"fmt"
	"io"
	"os"

	"k8s.io/component-base/cli"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	if os.Getenv("RDS_KUBE_END_WITH_STDIN") != "" {
		// Whoever started us holds the other end, and may be killed at any time.
		go func() {
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
	}
	name := os.Args[1]
	os.Args = os.Args[1:]
	switch name {
	case "kube-controller-manager":
		os.Exit(cli.Run(controllers.NewControllerManagerCommand()))
	case "kube-scheduler":
		os.Exit(cli.Run(scheduler.NewSchedulerCommand()))
	default:
		usage()
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: rds-kube-controllers kube-controller-manager|kube-scheduler FLAG...")
	os.Exit(2)
}
