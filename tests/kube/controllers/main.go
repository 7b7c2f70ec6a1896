// rds-kube-controllers is kube-controller-manager, kube-scheduler and kubectl in one program, for
// `make e2e`. Apart from rds-kube, so that whoever needs the API server only does not build these.
package main

import (
	"fmt"
	"io"
	"os"

	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	util "k8s.io/kubectl/pkg/cmd/util"
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
	case "kubectl":
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			util.CheckErr(err)
		}
	default:
		usage()
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: rds-kube-controllers kube-controller-manager|kube-scheduler|kubectl FLAG...")
	os.Exit(2)
}
